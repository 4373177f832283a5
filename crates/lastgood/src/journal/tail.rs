//! Open segments on the local disk: append, sync, begin another, remove.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use lastgood_format::journal::Lane;
use lastgood_format::journal::tail::Owner;
use lastgood_store::Disk;

/// The end of the name of an open segment.
pub const EXTENSION: &str = "open";

/// A file is not appended to beyond so many bytes: it is read as a whole after a crash.
const FILE_BYTES: u64 = 16 << 20;

/// For each lane, how many frames it has up to the end of a file.
type Counts = BTreeMap<Lane, u64>;

#[derive(Debug)]
struct File {
    path: PathBuf,
    bytes: u64,
    /// The frames that it ends with; it can go when so many are sealed.
    counts: Counts,
}

/// The open segments of one process. What was appended and synced survives a crash of process and machine.
#[derive(Debug)]
pub struct Tail {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    owner: Owner,
    /// What the names of its files begin with: no other process has the same.
    stem: String,
    number: u64,
    /// True once the folder is there and durable.
    is_ready: bool,
    current: Option<File>,
    old: Vec<File>,
}

impl Tail {
    /// No files yet. They will lie in `folder`, which the first one creates, and be named after `stem`.
    pub fn new(disk: Arc<dyn Disk>, folder: PathBuf, owner: Owner, stem: &str) -> Self {
        let stem = format!("{:020}-{stem}", owner.attempt);
        Self {
            disk,
            folder,
            owner,
            stem,
            number: 0,
            is_ready: false,
            current: None,
            old: Vec::new(),
        }
    }

    /// Appends encoded frames, up to the `counts` of all lanes, and syncs them; if that fails, to another file,
    /// since the kernel may drop what it could not write, and somebody may have removed the file.
    ///
    /// # Errors
    /// Those of the file system, as an [`io::Error`]. Nothing of `frames` counts as written then.
    pub fn append(&mut self, frames: &[u8], counts: &Counts) -> io::Result<()> {
        if self.current.as_ref().is_some_and(|file| file.bytes > FILE_BYTES) {
            self.begin_another();
        }
        self.try_append(frames, counts).or_else(|_| self.try_append(frames, counts))
    }

    fn try_append(&mut self, frames: &[u8], counts: &Counts) -> io::Result<()> {
        let written = self.write(frames);
        match (&mut self.current, written) {
            (Some(file), Ok(())) => {
                file.bytes += frames.len() as u64;
                file.counts.clone_from(counts);
                Ok(())
            }
            (_, written) => {
                self.begin_another();
                written
            }
        }
    }

    fn write(&mut self, frames: &[u8]) -> io::Result<()> {
        if let Some(file) = &self.current {
            self.disk.append(&file.path, frames)?;
            return self.disk.sync_file(&file.path);
        }
        if !self.is_ready {
            ensure_folder(&*self.disk, &self.folder)?;
            self.is_ready = true;
        }
        let path = self.folder.join(format!("{}-{:06}.{EXTENSION}", self.stem, self.number));
        self.number += 1;
        let parts = [self.owner.encode().into(), Bytes::copy_from_slice(frames)];
        // Known before it is there: whatever is left of it after an error is removed with the others.
        self.current = Some(File { path: path.clone(), bytes: 0, counts: Counts::new() });
        self.disk.create(&path, &parts)?;
        self.disk.sync_file(&path)?;
        self.disk.sync_folder(&self.folder)
    }

    /// Appends to a new file from here on.
    pub fn begin_another(&mut self) {
        self.old.extend(self.current.take());
    }

    /// Removes the files all of whose frames are sealed: `counts` says how many are, by lane.
    pub fn release(&mut self, counts: &Counts) {
        let is_sealed = |file: &File| {
            file.counts.iter().all(|(lane, count)| counts.get(lane).is_some_and(|n| n >= count))
        };
        if self.current.as_ref().is_some_and(is_sealed) {
            self.begin_another();
        }
        let disk = &self.disk;
        // One that cannot be removed is found by the next attempt, which removes it.
        self.old.retain(|file| !(is_sealed(file) && disk.unlink(&file.path).is_ok()));
    }
}

/// Creates the folder and those above it. A folder that exists may not be durable yet, if its maker crashed:
/// each is synced once by every process.
fn ensure_folder(disk: &dyn Disk, folder: &Path) -> io::Result<()> {
    let mut above: Vec<&Path> = folder.ancestors().collect();
    above.reverse();
    for pair in above.windows(2) {
        let was_there = match disk.create_folder(pair[1]) {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => true,
            // A folder far above may be on a file system that is not to be written to.
            Err(_) if pair[1] != folder => true,
            Err(error) => return Err(error),
        };
        match disk.sync_folder(pair[0]) {
            Err(_) if was_there && pair[1] != folder => {}
            synced => synced?,
        }
    }
    Ok(())
}

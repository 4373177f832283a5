//! Open segments that a crash has left: their whole frames are sealed, and their torn ends cut off.

use std::io;
use std::path::Path;

use bytes::Bytes;
use lastgood_format::journal::tail::{self, Owner, Stretch};
use lastgood_format::journal::{Lane, Position, Segment, genesis, segment};
use lastgood_format::{Error, ErrorKind, Result, key};
use lastgood_store::{Disk, Store};

use super::tail::EXTENSION;
use crate::objects;

/// A larger file is none that a writer has left.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// What was recovered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Frames that were sealed.
    pub frames: u64,
    /// What a person should know: torn ends, and files that were set aside.
    pub notices: Vec<String>,
}

/// Seals what processes of attempts before `owner`'s have left in `folder`, and removes their files. Files that
/// cannot be understood are set aside under another name.
///
/// Several processes may do it at once; a process whose attempt is fenced may still append to a file: what it
/// has not sealed by then is not part of the history.
///
/// # Errors
/// `Unavailable`, `Denied` and the like of the store: another call goes on.
pub async fn recover(
    disk: &dyn Disk,
    folder: &Path,
    store: &dyn Store,
    owner: &Owner,
) -> Result<Recovered> {
    let mut recovered = Recovered::default();
    let mut names: Vec<_> = match disk.list(folder) {
        Ok(entries) => entries.into_iter().filter(|e| !e.is_folder).map(|e| e.name).collect(),
        Err(error) => {
            recovered.notices.push(format!("{} cannot be listed: {error}", folder.display()));
            return Ok(recovered);
        }
    };
    // By attempt, by process, and in the order in which each process began them.
    names.sort();
    for name in names.iter().filter_map(|name| name.to_str()) {
        let attempt = name.strip_suffix(EXTENSION).and_then(|name| name.split('-').next());
        let Some(attempt) = attempt.and_then(|attempt| attempt.parse::<u64>().ok()) else {
            continue;
        };
        if attempt >= owner.attempt {
            continue;
        }
        let path = folder.join(name);
        let expected = Owner { attempt, ..owner.clone() };
        match recover_file(disk, &path, store, &expected, &mut recovered).await {
            Ok(()) => drop(disk.unlink(&path)),
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Incompatible) => {
                let aside = path.with_extension("aside");
                let moved = disk.link(&path, &aside).and_then(|()| disk.unlink(&path));
                recovered.notices.push(format!(
                    "{name}: {error}; {}",
                    match moved {
                        Ok(()) => format!("set aside as {}", aside.display()),
                        Err(error) => format!("it cannot be set aside: {error}"),
                    }
                ));
            }
            // Another process has recovered it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(recovered)
}

async fn recover_file(
    disk: &dyn Disk,
    path: &Path,
    store: &dyn Store,
    expected: &Owner,
    recovered: &mut Recovered,
) -> Result<()> {
    let bytes = read(disk, path)?;
    if bytes.is_empty() {
        return Ok(());
    }
    let (owner, frames) = match Owner::decode(&bytes) {
        Ok(decoded) => decoded,
        // The file is created with its first frames: torn here, nothing of it was acknowledged.
        Err(error) if error.kind() == ErrorKind::Corrupt && !holds_frames(&bytes) => return Ok(()),
        Err(error) => return Err(error),
    };
    if owner != *expected {
        return Err(Error::corrupt(format!(
            "it is of attempt {} of run {} of repository {}, not of attempt {} of run {} of {}",
            owner.attempt,
            owner.run,
            owner.repository,
            expected.attempt,
            expected.run,
            expected.repository
        )));
    }
    let scan = tail::scan(owner.attempt, frames)?;
    for (lane, stretch) in &scan.lanes {
        recovered.frames += seal_stretch(store, &owner, *lane, stretch).await?;
    }
    match scan.left {
        Some(left) if left.holds_frames => Err(Error::corrupt(format!(
            "{} bytes behind its last whole frame are damaged ({}), and whole frames are among them",
            left.bytes, left.why
        ))),
        Some(left) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            recovered.notices.push(format!(
                "{name}: {} bytes of an event that was being written are cut off: {}",
                left.bytes, left.why
            ));
            Ok(())
        }
        None => Ok(()),
    }
}

fn holds_frames(bytes: &[u8]) -> bool {
    let scan = tail::scan(0, bytes);
    scan.is_ok_and(|scan| scan.left.is_some_and(|left| left.holds_frames))
}

fn read(disk: &dyn Disk, path: &Path) -> Result<Bytes> {
    let failed = |error: &io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, format!("cannot read {}: {error}", path.display()))
    };
    let size = disk.size(path).map_err(|error| failed(&error))?;
    let size = size.ok_or_else(|| Error::not_found(format!("{} is gone", path.display())))?;
    if size > FILE_BYTES_MAX {
        return Err(Error::corrupt(format!(
            "it has {size} bytes, an open segment at most {FILE_BYTES_MAX}"
        )));
    }
    let mut bytes = vec![0; size as usize];
    disk.read(path, 0, &mut bytes).map_err(|error| failed(&error))?;
    Ok(bytes.into())
}

/// Seals the frames of one lane that are not sealed yet, and gives their number.
async fn seal_stretch(
    store: &dyn Store,
    owner: &Owner,
    lane: Lane,
    stretch: &Stretch,
) -> Result<u64> {
    let mut sealed = sealed_end(store, owner, lane).await?;
    let mut before = 0;
    loop {
        if sealed.next < stretch.begin.next {
            return Err(Error::corrupt(format!(
                "lane {lane} of attempt {}: frames {} to {} are missing before it",
                owner.attempt,
                sealed.next,
                stretch.begin.next - 1
            )));
        }
        if sealed.next >= stretch.end.next {
            return Ok(before);
        }
        let (piece, count) = next_piece(stretch, sealed.next);
        let object = key::journal_segment(&owner.run, owner.attempt, lane, sealed.next);
        // Checks that the frames continue what is sealed.
        let stored = Segment::encode(owner.attempt, lane, sealed, &piece).map_err(|error| {
            Error::corrupt(format!(
                "its frames do not continue what is sealed: {}",
                error.message()
            ))
        })?;
        let end = Segment::decode(&stored, owner.attempt, lane)?.header.end;
        match objects::put_same(store, &object, stored.into()).await {
            Ok(()) => {
                before += count;
                sealed = end;
            }
            // The process itself had sealed more or less of it at once, or another one recovers it.
            Err(error) if error.kind() == ErrorKind::Conflict => {
                sealed = header(store, &object, owner, lane).await?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Frames of a stretch from number `first` on, as many as fit into a segment.
fn next_piece(stretch: &Stretch, first: u64) -> (Vec<u8>, u64) {
    let mut piece = Vec::new();
    let mut count = 0;
    for frame in stretch.frames.iter().skip((first - stretch.begin.next) as usize) {
        if count > 0 && piece.len() + frame.len() > segment::FRAMES_BYTES {
            break;
        }
        piece.extend_from_slice(frame);
        count += 1;
    }
    (piece, count)
}

/// Where the sealed segments of a lane end.
async fn sealed_end(store: &dyn Store, owner: &Owner, lane: Lane) -> Result<Position> {
    let first = key::journal_segment(&owner.run, owner.attempt, lane, 0);
    let folder = first.rsplit_once('/').map_or("", |(folder, _)| folder);
    let listed = store.list(&format!("{folder}/"), None).await?;
    match listed.last() {
        Some(object) => header(store, &object.key, owner, lane).await,
        None => Ok(Position {
            next: 0,
            head: genesis(&owner.repository, &owner.run, owner.attempt, lane),
        }),
    }
}

async fn header(store: &dyn Store, object: &str, owner: &Owner, lane: Lane) -> Result<Position> {
    let stored = store.get_range(object, 0..segment::HEADER_BYTES as u64).await?;
    let header =
        segment::Header::decode(&stored).map_err(|error| error.with_object(object.to_owned()))?;
    if (header.attempt, header.lane) != (owner.attempt, lane) {
        return Err(Error::corrupt("a segment stands under another one's name").with_object(object));
    }
    // Another process may have put it and not yet been told so.
    store.settle(object).await?;
    Ok(header.end)
}

//! Open segments that a crash has left: their whole frames are sealed, and their torn ends cut off.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lastgood_format::journal::tail::{self, Left, Owner, Stretch};
use lastgood_format::journal::{Lane, Position, Segment, Value, genesis, segment};
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
    /// Files of which not everything was. Of several processes that recover at once, one has each of them.
    pub notices: Vec<Notice>,
}

/// A file of which not everything was sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The attempt that wrote it.
    pub attempt: u64,
    /// Its name.
    pub file: String,
    /// The bytes that are not sealed.
    pub bytes: u64,
    /// Why.
    pub cause: String,
    /// What became of them.
    pub fate: Fate,
}

/// What became of bytes that are not sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They were being written when their process ended, as happens with a crash: they are gone.
    Torn,
    /// They are damaged, and kept for a person.
    Damaged {
        /// `Corrupt`, or `Incompatible` if a newer version wrote them.
        kind: ErrorKind,
        /// Where the file lies now; `None` if it had to stay where it was.
        aside: Option<PathBuf>,
    },
}

impl Notice {
    /// What a person is told; `None` if it is what every crash may leave.
    #[must_use]
    pub fn error(&self) -> Option<Error> {
        let Fate::Damaged { kind, aside } = &self.fate else { return None };
        let Self { attempt, file, bytes, cause, .. } = self;
        let message =
            format!("the journal of attempt {attempt}: {bytes} bytes are not taken: {cause}");
        let error = Error::new(*kind, message);
        Some(match aside {
            Some(aside) => error.with_object(aside.display().to_string()).with_remedy(
                "look at the disk; what stands before them is in the store, and the file was set aside",
            ),
            None => error
                .with_object(file)
                .with_remedy("look at the disk; the file stays, and the next attempt tries again"),
        })
    }

    /// What the event says.
    pub(crate) fn value(&self) -> Value {
        let aside = match &self.fate {
            Fate::Torn => None,
            Fate::Damaged { aside, .. } => Some((
                "aside",
                match aside {
                    Some(aside) => aside.display().to_string().into(),
                    None => Value::Null,
                },
            )),
        };
        let members = [
            ("attempt", self.attempt.into()),
            ("file", self.file.as_str().into()),
            ("bytes", self.bytes.into()),
            ("cause", self.cause.as_str().into()),
        ];
        Value::map(members.into_iter().chain(aside))
    }
}

/// Seals what processes of attempts before `owner`'s have left in `folder`, and removes their files. Files that
/// cannot be understood are set aside under another name. `recovered` is told of each as it is done.
///
/// Several processes may do it at once; a process whose attempt is fenced may still append to a file: what it
/// has not sealed by then is not part of the history.
///
/// # Errors
/// `Unavailable`, `Denied` and the like of the store, and of the folder if it cannot be listed: another call
/// goes on.
pub async fn recover(
    disk: &dyn Disk,
    folder: &Path,
    store: &dyn Store,
    owner: &Owner,
    recovered: &mut Recovered,
) -> Result<()> {
    let listed = disk.list(folder).map_err(|error| {
        failed("list", folder, &error)
            .with_object(folder.display().to_string())
            .with_remedy("see that it is a folder that this process may read")
    })?;
    let mut names: Vec<_> = listed.into_iter().filter(|e| !e.is_folder).map(|e| e.name).collect();
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
        let found = recover_file(disk, &path, store, &expected, &mut recovered.frames).await;
        recovered.notices.extend(finish(disk, &path, attempt, found)?);
    }
    Ok(())
}

/// Removes a file, or sets it aside, as what was `found` in it says. Who does so tells of it.
fn finish(
    disk: &dyn Disk,
    path: &Path,
    attempt: u64,
    found: Result<Option<Left>>,
) -> Result<Option<Notice>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let notice = |bytes, cause, fate| Notice { attempt, file: name.into(), bytes, cause, fate };
    let (kind, bytes, cause) = match found {
        Ok(Some(left)) if left.holds_frames => {
            let cause = format!("{}, and whole events stand behind it", left.why);
            (ErrorKind::Corrupt, left.bytes as u64, cause)
        }
        Ok(left) => {
            let is_done = disk.unlink(path).is_ok();
            let left = left.filter(|_| is_done);
            return Ok(left.map(|left| notice(left.bytes as u64, left.why, Fate::Torn)));
        }
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Incompatible) => {
            let bytes = disk.size(path).ok().flatten().unwrap_or(0);
            (error.kind(), bytes, error.to_string())
        }
        // Another process has recovered it.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let aside = path.with_extension("aside");
    let linked = match disk.link(path, &aside) {
        // By a process that recovers at the same time, or that crashed here.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    };
    Ok(match linked.and_then(|()| disk.unlink(path)) {
        Ok(()) => Some(notice(bytes, cause, Fate::Damaged { kind, aside: Some(aside) })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            let cause = format!("{cause}; it cannot be set aside: {error}");
            Some(notice(bytes, cause, Fate::Damaged { kind, aside: None }))
        }
    })
}

/// Seals the frames of a file, and gives what stands behind the last whole one.
async fn recover_file(
    disk: &dyn Disk,
    path: &Path,
    store: &dyn Store,
    expected: &Owner,
    sealed: &mut u64,
) -> Result<Option<Left>> {
    let bytes = read(disk, path)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let (owner, frames) = match Owner::decode(&bytes) {
        Ok(decoded) => decoded,
        // The file is created with its first frames: torn here, nothing of it was acknowledged.
        Err(error) if error.kind() == ErrorKind::Corrupt && !holds_frames(&bytes) => {
            let why = error.message().to_owned();
            return Ok(Some(Left { bytes: bytes.len(), why, holds_frames: false }));
        }
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
        *sealed += seal_stretch(store, &owner, *lane, stretch).await?;
    }
    Ok(scan.left)
}

fn holds_frames(bytes: &[u8]) -> bool {
    let scan = tail::scan(0, bytes);
    scan.is_ok_and(|scan| scan.left.is_some_and(|left| left.holds_frames))
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("cannot {what} {}: {error}", path.display()))
}

fn read(disk: &dyn Disk, path: &Path) -> Result<Bytes> {
    let failed = |error: io::Error| failed("read", path, &error);
    let size = disk.size(path).map_err(failed)?;
    let size = size.ok_or_else(|| Error::not_found(format!("{} is gone", path.display())))?;
    if size > FILE_BYTES_MAX {
        return Err(Error::corrupt(format!(
            "it has {size} bytes, an open segment at most {FILE_BYTES_MAX}"
        )));
    }
    let mut bytes = vec![0; size as usize];
    disk.read(path, 0, &mut bytes).map_err(failed)?;
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

//! Which checkpoints are in a folder, and of which format.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lastgood::{Error, ErrorKind, Result};

use super::formats::Format;

/// How deep folders are searched, and how many entries at most.
const DEPTH_MAX: usize = 12;
const ENTRIES_MAX: usize = 500_000;

/// One checkpoint: a folder, or a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) is_folder: bool,
    /// The bytes of all its files.
    pub(crate) bytes: u64,
}

/// Checkpoints of one format side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// The folder that they are in.
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    pub(crate) places: Vec<Place>,
}

impl Group {
    pub(crate) fn bytes(&self) -> u64 {
        self.places.iter().map(|place| place.bytes).sum()
    }
}

/// What stands in a folder.
#[derive(Debug, Default)]
pub(crate) struct Folder {
    pub(crate) files: Vec<String>,
    pub(crate) folders: Vec<String>,
}

impl Folder {
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let mut folder = Self::default();
        for entry in fs::read_dir(path)?.take(ENTRIES_MAX) {
            let entry = entry?;
            // A name that is no text is no name that any tool gives.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let is_link = entry.file_type()?.is_symlink();
            // Links to files are followed: caches of models are made of them. Links to folders can go in
            // circles. A link that leads nowhere is a file that is missing, which is for the format to say.
            match fs::metadata(entry.path()) {
                Ok(metadata) if metadata.is_dir() && !is_link => folder.folders.push(name),
                Ok(metadata) if metadata.is_file() => folder.files.push(name),
                _ => {}
            }
        }
        folder.files.sort();
        folder.folders.sort();
        Ok(folder)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.binary_search_by(|file| file.as_str().cmp(name)).is_ok()
    }

    pub(crate) fn has_folder(&self, name: &str) -> bool {
        self.folders.binary_search_by(|folder| folder.as_str().cmp(name)).is_ok()
    }

    pub(crate) fn any(&self, is: impl Fn(&str) -> bool) -> bool {
        self.files.iter().any(|file| is(file))
    }
}

/// The digits behind `prefix`, if that is all.
pub(crate) fn number_behind(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?;
    let all = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| digits.parse().ok()).flatten()
}

/// Every checkpoint at and below `path`.
pub(super) fn discover(path: &Path) -> Result<Vec<Group>> {
    let metadata = fs::metadata(path).map_err(|e| unreadable(path, &e))?;
    let parent = |path: &Path| path.parent().unwrap_or(path).to_owned();
    let mut groups = BTreeMap::new();
    if !metadata.is_dir() {
        if !metadata.is_file() {
            return Err(Error::invalid(format!("{} is neither file nor folder", path.display())));
        }
        // The folder of a name without one is no empty path. Links are kept: a cache calls what they lead to by
        // its checksum.
        let path = std::path::absolute(path).map_err(|e| unreadable(path, &e))?;
        let (format, at) = match Format::of_file(&path) {
            Some(Format::Dcp) => (Format::Dcp, parent(&path)),
            Some(format) => (format, path),
            None => return Ok(Vec::new()),
        };
        let group = groups.entry((parent(&at), format)).or_insert_with(Vec::new);
        group.push(place(&at, format == Format::Dcp));
    } else {
        // The empty path is no folder's parent.
        let path = fs::canonicalize(path).map_err(|e| unreadable(path, &e))?;
        let mut left = ENTRIES_MAX;
        let above = parent(&path);
        search(&path, &above, 0, &mut left, &mut groups)?;
    }
    let groups = groups.into_iter().map(|((path, format), places)| Group { path, format, places });
    Ok(groups.collect())
}

type Groups = BTreeMap<(PathBuf, Format), Vec<Place>>;

fn search(
    path: &Path,
    above: &Path,
    depth: usize,
    left: &mut usize,
    groups: &mut Groups,
) -> Result<()> {
    let folder = match Folder::read(path) {
        Ok(folder) => folder,
        Err(error) if depth == 0 => return Err(unreadable(path, &error)),
        // What is below may be someone else's. What is a checkpoint by its name is one that cannot be read.
        Err(_) => {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            if let Some(format) = Format::of_folder(name, &Folder::default()) {
                groups.entry((above.to_owned(), format)).or_default().push(place(path, true));
            }
            return Ok(());
        }
    };
    *left = left.saturating_sub(folder.files.len() + folder.folders.len() + 1);
    if folder.has("lastgood.json") && folder.has_folder("runs") {
        if depth > 0 {
            return Ok(());
        }
        return Err(Error::invalid(format!("{} is a lastgood repository", path.display()))
            .with_remedy("`lastgood verify` checks every byte of it"));
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
    match Format::of_folder(name, &folder) {
        // The weights at the end of a training, with the checkpoints on the way below.
        Some(Format::Safetensors) => {
            let group = groups.entry((above.to_owned(), Format::Safetensors)).or_default();
            let sizes = folder.files.iter().map(|file| fs::metadata(path.join(file)));
            let bytes = sizes.flatten().map(|metadata| metadata.len()).sum();
            group.push(Place { path: path.to_owned(), is_folder: true, bytes });
        }
        Some(format) => {
            groups.entry((above.to_owned(), format)).or_default().push(place(path, true));
            return Ok(());
        }
        None => loose_files(path, &folder, groups),
    }
    if depth < DEPTH_MAX && *left > 0 {
        for inner in &folder.folders {
            search(&path.join(inner), path, depth + 1, left, groups)?;
        }
    }
    Ok(())
}

/// Files that are a checkpoint each.
fn loose_files(path: &Path, folder: &Folder, groups: &mut Groups) {
    for file in &folder.files {
        let file = path.join(file);
        if let Some(format) = Format::of_loose_file(&file) {
            groups.entry((path.to_owned(), format)).or_default().push(place(&file, false));
        }
    }
}

fn place(path: &Path, is_folder: bool) -> Place {
    let mut left = ENTRIES_MAX;
    let bytes = match is_folder {
        true => folder_bytes(path, 0, &mut left),
        false => fs::metadata(path).map_or(0, |metadata| metadata.len()),
    };
    Place { path: path.to_owned(), is_folder, bytes }
}

fn folder_bytes(path: &Path, depth: usize, left: &mut usize) -> u64 {
    let mut bytes = 0;
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    for entry in entries.flatten() {
        if *left == 0 {
            break;
        }
        *left -= 1;
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        bytes += match fs::metadata(entry.path()) {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            Ok(metadata) if metadata.is_dir() && !is_link && depth < DEPTH_MAX => {
                folder_bytes(&entry.path(), depth + 1, left)
            }
            _ => 0,
        };
    }
    bytes
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("cannot read {}: {error}", path.display()))
}

//! A file system in memory: folders, names, files.
//!
//! It is cheap to copy, so that every state that a crash can leave is a tree of its own.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path};
use std::sync::Arc;

use bytes::Bytes;
use lastgood_store::disk::DiskEntry;

/// A folder, whatever its names.
pub(super) type Folder = usize;
/// The content of a file, whatever its names.
pub(super) type File = usize;
/// A name in a folder.
pub(super) type Name = Arc<OsStr>;

/// The folder above all.
pub(super) const TOP: Folder = 0;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    File(File),
    Folder(Folder),
}

/// The names of one folder.
pub(super) type Names = BTreeMap<Name, Node>;

/// Folders and files, the first folder being the one above all.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) folders: Vec<Arc<Names>>,
    pub(super) files: Arc<Vec<Bytes>>,
}

impl Default for Tree {
    fn default() -> Self {
        Self { folders: vec![Arc::default()], files: Arc::default() }
    }
}

impl Tree {
    pub(super) fn find(&self, path: &Path) -> Option<Node> {
        let mut at = Node::Folder(TOP);
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            let Node::Folder(folder) = at else { return None };
            at = *self.folders.get(folder)?.get(name)?;
        }
        Some(at)
    }

    pub(super) fn folder(&self, path: &Path) -> io::Result<Folder> {
        match self.find(path) {
            Some(Node::Folder(folder)) => Ok(folder),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn file(&self, path: &Path) -> io::Result<File> {
        match self.find(path) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Folder(_)) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// The folder and the name that `path` is made of.
    pub(super) fn place(&self, path: &Path) -> io::Result<(Folder, Name)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.folder(parent)?, name.into()))
    }

    /// The folder and the name of something new.
    pub(super) fn vacant(&self, path: &Path) -> io::Result<(Folder, Name)> {
        let (folder, name) = self.place(path)?;
        match self.folders[folder].contains_key(&name) {
            true => Err(io::ErrorKind::AlreadyExists.into()),
            false => Ok((folder, name)),
        }
    }

    pub(super) fn add_file(&mut self, bytes: Bytes) -> File {
        let files = Arc::make_mut(&mut self.files);
        files.push(bytes);
        files.len() - 1
    }

    pub(super) fn add_folder(&mut self) -> Folder {
        self.folders.push(Arc::default());
        self.folders.len() - 1
    }

    /// Gives `name` to `node`, or to nothing.
    pub(super) fn set(&mut self, folder: Folder, name: &Name, node: Option<Node>) {
        let names = Arc::make_mut(&mut self.folders[folder]);
        match node {
            Some(node) => names.insert(Arc::clone(name), node),
            None => names.remove(name),
        };
    }

    pub(super) fn read(&self, path: &Path, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let bytes = &self.files[self.file(path)?];
        let end = offset.checked_add(target.len() as u64).filter(|end| *end <= bytes.len() as u64);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        target.copy_from_slice(&bytes[offset as usize..end as usize]);
        Ok(())
    }

    pub(super) fn size(&self, path: &Path) -> Option<u64> {
        self.file(path).ok().map(|file| self.files[file].len() as u64)
    }

    pub(super) fn list(&self, path: &Path) -> Vec<DiskEntry> {
        let Ok(folder) = self.folder(path) else { return Vec::new() };
        let entry = |(name, node): (&Name, &Node)| DiskEntry {
            name: name.as_ref().to_owned(),
            is_folder: matches!(node, Node::Folder(_)),
            bytes: match node {
                Node::File(file) => self.files[*file].len() as u64,
                Node::Folder(_) => 0,
            },
        };
        self.folders[folder].iter().map(entry).collect()
    }
}

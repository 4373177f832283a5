//! A disk of memory that files are appended to, and what a cut of power leaves of it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lastgood_store::Disk;
use lastgood_store::disk::DiskEntry;

use super::fate::{Fate, Turn};
use crate::random::Random;

/// What a disk writes at once, or not.
const BLOCK_BYTES: usize = 64;

#[derive(Clone, Debug)]
enum Node {
    File {
        bytes: Vec<u8>,
        /// So many survive.
        synced: usize,
    },
    Folder,
}

#[derive(Clone, Debug)]
struct Entry {
    node: Node,
    /// The name survives.
    is_named: bool,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<PathBuf, Entry>,
    /// Names that were removed, whose folder was not synced since.
    removed: BTreeMap<PathBuf, Entry>,
    /// Syncs that the disk refuses, each in so many of a thousand; what was to be synced is lost.
    refused: u64,
}

/// The disk of one machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Platter(Arc<Mutex<Inner>>);

impl Platter {
    pub(super) fn new(refused: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner { refused, ..Inner::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on every sync does what it should.
    pub(super) fn heal(&self) {
        self.lock().refused = 0;
    }

    /// The power goes: of what was not synced anything may be left.
    pub(super) fn cut_power(&self, random: &mut Random) {
        let mut inner = self.lock();
        let removed = std::mem::take(&mut inner.removed);
        let back = removed.into_iter().filter(|_| random.chance(300)).collect::<Vec<_>>();
        for (path, entry) in back {
            inner.entries.entry(path).or_insert(entry);
        }
        let lost: Vec<PathBuf> = inner
            .entries
            .iter()
            .filter(|(_, entry)| !entry.is_named && random.chance(500))
            .map(|(path, _)| path.clone())
            .collect();
        inner.entries.retain(|path, _| !lost.iter().any(|gone| path.starts_with(gone)));
        for entry in inner.entries.values_mut() {
            entry.is_named = true;
            if let Node::File { bytes, synced } = &mut entry.node {
                tear(bytes, *synced, random);
                *synced = bytes.len();
            }
        }
    }
}

/// Cuts off some of what was not synced, and leaves out some blocks of what remains.
fn tear(bytes: &mut Vec<u8>, synced: usize, random: &mut Random) {
    let torn = bytes.len() - synced;
    if torn == 0 || random.chance(200) {
        return;
    }
    bytes.truncate(synced + random.below(torn as u64 + 1) as usize);
    let lost = [0, 0, 100, 500][random.below(4) as usize];
    for block in bytes[synced..].chunks_mut(BLOCK_BYTES) {
        if random.chance(lost) {
            let fill = if random.chance(500) { 0 } else { random.draw() as u8 };
            block.fill(fill);
        }
    }
}

/// One process's way to the disk.
#[derive(Clone, Debug)]
pub(super) struct PlatterDisk {
    pub(super) platter: Platter,
    pub(super) fate: Fate,
}

fn gone() -> io::Error {
    io::Error::other("the process is gone")
}

fn absent() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl PlatterDisk {
    /// An operation that may have only a part of its effect if it is the last one.
    fn write<T>(
        &self,
        work: impl FnOnce(&mut Inner, Option<u64>) -> io::Result<T>,
    ) -> io::Result<T> {
        match self.fate.turn() {
            Turn::Lives => work(&mut self.platter.lock(), None),
            Turn::Dies(true) => {
                let part = self.fate.below(1001);
                let _ = work(&mut self.platter.lock(), Some(part));
                Err(gone())
            }
            Turn::Dies(false) | Turn::Dead => Err(gone()),
        }
    }

    fn read_only<T>(&self, work: impl FnOnce(&Inner) -> io::Result<T>) -> io::Result<T> {
        match self.fate.turn() {
            Turn::Lives => work(&self.platter.lock()),
            Turn::Dies(_) | Turn::Dead => Err(gone()),
        }
    }
}

/// The first `part` of a thousand.
fn part(bytes: &[u8], part: Option<u64>) -> &[u8] {
    let count = part.map_or(bytes.len(), |part| bytes.len() * part as usize / 1000);
    &bytes[..count]
}

fn check_folder(inner: &Inner, path: &Path) -> io::Result<()> {
    let parent = path.parent().ok_or_else(absent)?;
    let is_there = parent == Path::new("/")
        || inner.entries.get(parent).is_some_and(|entry| matches!(entry.node, Node::Folder));
    if is_there { Ok(()) } else { Err(absent()) }
}

fn vacant(inner: &Inner, path: &Path) -> io::Result<()> {
    check_folder(inner, path)?;
    match inner.entries.contains_key(path) {
        true => Err(io::ErrorKind::AlreadyExists.into()),
        false => Ok(()),
    }
}

impl Disk for PlatterDisk {
    fn create(&self, path: &Path, parts: &[Bytes]) -> io::Result<()> {
        self.write(|inner, cut| {
            vacant(inner, path)?;
            let bytes = part(&parts.concat(), cut).to_vec();
            let node = Node::File { bytes, synced: 0 };
            inner.entries.insert(path.to_owned(), Entry { node, is_named: false });
            Ok(())
        })
    }

    fn append(&self, path: &Path, more: &[u8]) -> io::Result<()> {
        self.write(|inner, cut| match inner.entries.get_mut(path).map(|entry| &mut entry.node) {
            Some(Node::File { bytes, .. }) => {
                bytes.extend_from_slice(part(more, cut));
                Ok(())
            }
            _ => Err(absent()),
        })
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        let fails = self.fate.below(1000);
        self.write(|inner, cut| {
            let refused = fails < inner.refused;
            match inner.entries.get_mut(path).map(|entry| &mut entry.node) {
                // As a kernel does that drops the pages which it could not write.
                Some(Node::File { bytes, synced }) if refused => {
                    bytes[*synced..].fill(0);
                    Err(io::Error::other("the disk is failing"))
                }
                Some(Node::File { bytes, synced }) => {
                    if cut.is_none() {
                        *synced = bytes.len();
                    }
                    Ok(())
                }
                _ => Err(absent()),
            }
        })
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.write(|inner, _| {
            vacant(inner, to)?;
            let entry = inner.entries.get(from).ok_or_else(absent)?.clone();
            inner.entries.insert(to.to_owned(), Entry { is_named: false, ..entry });
            Ok(())
        })
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.write(|inner, _| {
            let entry = inner.entries.remove(path).ok_or_else(absent)?;
            inner.removed.insert(path.to_owned(), entry);
            Ok(())
        })
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.write(|inner, _| {
            vacant(inner, path)?;
            let entry = Entry { node: Node::Folder, is_named: false };
            inner.entries.insert(path.to_owned(), entry);
            Ok(())
        })
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.write(|inner, cut| {
            if path != Path::new("/") && !inner.entries.contains_key(path) {
                return Err(absent());
            }
            if cut.is_none() {
                let within = |entry: &Path| entry.parent() == Some(path);
                inner.removed.retain(|removed, _| !within(removed));
                let entries = inner.entries.iter_mut().filter(|(entry, _)| within(entry));
                entries.for_each(|(_, entry)| entry.is_named = true);
            }
            Ok(())
        })
    }

    fn read(&self, path: &Path, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.read_only(|inner| match inner.entries.get(path).map(|entry| &entry.node) {
            Some(Node::File { bytes, .. }) => {
                let from = bytes.get(offset as usize..offset as usize + target.len());
                target.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
            _ => Err(absent()),
        })
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        self.read_only(|inner| match inner.entries.get(path).map(|entry| &entry.node) {
            Some(Node::File { bytes, .. }) => Ok(Some(bytes.len() as u64)),
            _ => Ok(None),
        })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>> {
        self.read_only(|inner| {
            let within = inner.entries.iter().filter(|(entry, _)| entry.parent() == Some(path));
            let entry = |(name, entry): (&PathBuf, &Entry)| {
                let (is_folder, bytes) = match &entry.node {
                    Node::File { bytes, .. } => (false, bytes.len() as u64),
                    Node::Folder => (true, 0),
                };
                let name = name.file_name().unwrap_or_default().to_owned();
                DiskEntry { name, is_folder, bytes }
            };
            Ok(within.map(entry).collect())
        })
    }
}

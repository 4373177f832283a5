//! What is durable at a point of a recording, and what a crash there may still take.
//!
//! Only what POSIX promises counts, and what ext4 and XFS promise with their defaults: syncing a file makes
//! its bytes durable and none of its names; syncing a folder makes the names in it durable and nothing
//! below. Every other effect may outlive a crash alone, whatever came before it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::{Op, Step};
use super::tree::{File, Folder, Name, Node, Tree};

/// Where files are written before they get their name; nobody reads what is left there.
const STAGING: &str = ".staging";

/// A change of a name that is not durable.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) folder: Folder,
    pub(super) name: Name,
    /// What the name stands for from then on.
    pub(super) node: Option<Node>,
}

/// A recording up to one point.
#[derive(Clone, Debug)]
pub(super) struct Replay {
    /// What no crash can take; of files that are not synced, the bytes may be anything.
    pub(super) durable: Tree,
    /// Changes that a reader could see, in order.
    pub(super) changes: Vec<Change>,
    /// Changes of names in the staging folder, in order.
    pub(super) leavings: Vec<Change>,
    synced: Vec<bool>,
    staging: Option<Folder>,
}

impl Replay {
    pub(super) fn new(files: &Arc<Vec<Bytes>>) -> Self {
        let durable = Tree { files: Arc::clone(files), ..Tree::default() };
        let synced = vec![false; files.len()];
        Self { durable, changes: Vec::new(), leavings: Vec::new(), synced, staging: None }
    }

    /// Goes on by one step.
    pub(super) fn go_on(&mut self, step: &Step) {
        match &step.op {
            Op::Create { folder, name, file } | Op::Link { folder, name, file } => {
                self.change(*folder, name, Some(Node::File(*file)));
            }
            Op::Unlink { folder, name } => self.change(*folder, name, None),
            Op::CreateFolder { folder, name, new } => {
                while self.durable.folders.len() <= *new {
                    self.durable.add_folder();
                }
                if name.as_ref() == OsStr::new(STAGING) {
                    self.staging = Some(*new);
                }
                self.change(*folder, name, Some(Node::Folder(*new)));
            }
            Op::SyncFile(file) => self.synced[*file] = true,
            Op::SyncFolder(folder) => self.sync_folder(*folder),
        }
    }

    fn change(&mut self, folder: Folder, name: &Name, node: Option<Node>) {
        let change = Change { folder, name: Arc::clone(name), node };
        match self.staging == Some(folder) {
            true => self.leavings.push(change),
            false => self.changes.push(change),
        }
    }

    fn sync_folder(&mut self, folder: Folder) {
        for list in [&mut self.changes, &mut self.leavings] {
            for change in list.extract_if(.., |change| change.folder == folder) {
                self.durable.set(folder, &change.name, change.node);
            }
        }
    }

    pub(super) fn is_synced(&self, file: File) -> bool {
        self.synced[file]
    }

    pub(super) fn staging(&self) -> Option<Folder> {
        self.staging
    }

    /// Files whose bytes are not durable and that have, or may get, a name that a reader looks at.
    pub(super) fn torn(&self) -> Vec<File> {
        if self.synced.iter().all(|synced| *synced) {
            return Vec::new();
        }
        let named = self.durable.folders.iter().enumerate().flat_map(|(folder, names)| {
            let is_staging = self.staging == Some(folder);
            names.values().copied().filter(move |_| !is_staging)
        });
        let changed = self.changes.iter().filter_map(|change| change.node);
        let files: BTreeSet<File> = named
            .chain(changed)
            .filter_map(|node| match node {
                Node::File(file) if !self.synced[file] => Some(file),
                _ => None,
            })
            .collect();
        files.into_iter().collect()
    }
}

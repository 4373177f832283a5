//! The planted bugs, by name, and who is to find them.

use std::sync::Arc;

use lastgood::ledger::Rules;

use super::disks::{Slip, Slipping};
use super::judges::{Blind, BlindJudge, NoRandomness};
use super::stores::{Misuse, Misused};
use crate::setting::Setting;

/// Who is to find a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finder {
    /// The simulation.
    Simulation,
    /// The enumerator of crash states.
    Enumerator,
    /// Each of both.
    Both,
    /// The crashes of the journal's writer.
    Journal,
}

/// A planted bug.
#[derive(Clone, Debug)]
pub struct Bug {
    /// What it does.
    pub name: &'static str,
    /// The code with it.
    pub setting: Setting,
    /// Who is to find it.
    pub finder: Finder,
}

fn blind(blind: Blind) -> Setting {
    let rules: Arc<dyn Rules> = Arc::new(BlindJudge(blind));
    Setting { rules, ..Setting::default() }
}

/// Heads stand at every 64th entry.
fn past(setting: Setting) -> Setting {
    Setting { has_past: true, ..setting }
}

macro_rules! misused {
    ($misuse:ident) => {
        Setting { store: |store| Misused::over(store, Misuse::$misuse), ..Setting::default() }
    };
}

macro_rules! slipping {
    ($slip:ident) => {
        Setting { disk: |disk| Slipping::over(disk, Slip::$slip), ..Setting::default() }
    };
}

/// Every planted bug.
#[must_use]
pub fn all() -> Vec<Bug> {
    use Finder::{Both, Enumerator, Journal, Simulation};
    let no_randomness = Setting { env: |env| Arc::new(NoRandomness(env)), ..Setting::default() };
    [
        ("the fence check is dropped", blind(Blind::Fence), Both),
        ("a read-back is trusted without its seal", blind(Blind::Seal), Simulation),
        ("the check for abandoned saves is dropped", blind(Blind::Abandoned), Simulation),
        ("the check for expired bases is dropped", blind(Blind::Expired), Simulation),
        ("the check for bad bases is dropped", blind(Blind::Bad), Simulation),
        ("a taken slot is thought to be ours, unread", misused!(TakenIsOurs), Both),
        ("a lost answer is told as not committed", misused!(LostIsRefused), Simulation),
        ("the next slot is tried while one is undecided", misused!(LostIsOurs), Simulation),
        ("write ids repeat", no_randomness, Both),
        ("the shard index is put before the packs", misused!(IndexBeforePacks), Both),
        ("the commit is appended before the manifest", misused!(CommitBeforeManifest), Both),
        ("a commit does not wait for every rank's index", misused!(NoWaiting), Both),
        ("objects are overwritten, not created", misused!(Overwrite), Both),
        ("what is seen is taken for durable", misused!(NoSettle), Both),
        ("a step saved again keeps its generation", misused!(SameGeneration), Both),
        ("a head is put before its entry", past(misused!(HeadBeforeEntry)), Simulation),
        ("a head is trusted without its seal", past(misused!(HeadUnsealed)), Simulation),
        ("files are not synced", slipping!(NoFileSync), Enumerator),
        ("folders are not synced", slipping!(NoFolderSync), Enumerator),
        ("a folder is synced before the link", slipping!(FolderSyncFirst), Enumerator),
        ("a file is synced after the link", slipping!(LinkFirst), Enumerator),
        ("names are overwritten, as by a rename", slipping!(Rename), Enumerator),
        ("the name of a new folder is not synced", slipping!(NewFolderUnsynced), Enumerator),
        ("an object that exists is not synced", slipping!(FoundUnsynced), Enumerator),
        ("open segments are not synced", slipping!(NoFileSync), Journal),
        ("the folder of open segments is not synced", slipping!(NoFolderSync), Journal),
        ("the name of that folder is not synced", slipping!(NewFolderUnsynced), Journal),
        ("a failed sync is taken for done", slipping!(FailedSync), Journal),
    ]
    .map(|(name, setting, finder)| Bug { name, setting, finder })
    .into()
}

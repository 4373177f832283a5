//! Heartbeats, and what counts as a stall.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lastgood::{Error, Result};
use tempfile::TempDir;

/// The heartbeats of one attempt: a file for each rank, see [`HEARTBEAT`](crate::rank::HEARTBEAT).
#[derive(Debug)]
pub(super) struct Watch {
    // Holds the files until the attempt is over.
    _folder: TempDir,
    beats: Vec<Beat>,
    timeout: Option<Duration>,
    /// The last output of any rank, which is all that tells of a job without heartbeats.
    last_output: Instant,
}

#[derive(Debug)]
struct Beat {
    path: PathBuf,
    file: File,
    step: Option<u64>,
    since: Instant,
    ended: bool,
}

impl Watch {
    pub(super) fn new(ranks: u32, timeout: Option<Duration>) -> Result<Self> {
        let failed = |error| Error::unavailable(format!("no file for heartbeats: {error}"));
        let folder = tempfile::Builder::new().prefix("lastgood-run.").tempdir().map_err(failed)?;
        let now = Instant::now();
        let beats = (0..ranks)
            .map(|rank| {
                let path = folder.path().join(format!("rank-{rank}"));
                let file = File::options().create_new(true).read(true).write(true).open(&path)?;
                Ok(Beat { path, file, step: None, since: now, ended: false })
            })
            .collect::<std::io::Result<_>>()
            .map_err(failed)?;
        Ok(Self { _folder: folder, beats, timeout, last_output: now })
    }

    /// Where `rank` writes its heartbeat.
    pub(super) fn path(&self, rank: u32) -> &PathBuf {
        &self.beats[rank as usize].path
    }

    pub(super) fn saw_output(&mut self) {
        self.last_output = Instant::now();
    }

    /// A rank that has ended cannot stall.
    pub(super) fn saw_end(&mut self, rank: u32) {
        self.beats[rank as usize].ended = true;
    }

    /// The furthest step that a rank has told of.
    pub(super) fn step(&self) -> Option<u64> {
        self.beats.iter().filter_map(|beat| beat.step).max()
    }

    /// Reads the heartbeats. True if the furthest step has moved.
    pub(super) fn poll(&mut self) -> bool {
        let before = self.step();
        let now = Instant::now();
        for beat in &mut self.beats {
            let mut bytes = [0; 8];
            let read = beat.file.read_exact_at(&mut bytes, 0).is_ok();
            let step = u64::from_le_bytes(bytes).checked_sub(1).filter(|_| read);
            if step != beat.step {
                beat.step = step;
                beat.since = now;
            }
        }
        self.step() != before
    }

    /// The rank that made no progress for longer than the timeout, and for how long. Once a rank has
    /// told of steps, only its steps count; before that, any output does.
    pub(super) fn stalled(&self) -> Option<(u32, Duration)> {
        let timeout = self.timeout?;
        let waited = |beat: &Beat| match beat.step {
            Some(_) => beat.since.elapsed(),
            None => beat.since.max(self.last_output).elapsed(),
        };
        (0..)
            .zip(&self.beats)
            .filter(|(_, beat)| !beat.ended)
            .map(|(rank, beat)| (rank, waited(beat)))
            .max_by_key(|(_, waited)| *waited)
            .filter(|(_, waited)| *waited > timeout)
    }
}

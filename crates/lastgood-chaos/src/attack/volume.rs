//! File systems of their own for attacks, mounted from files in memory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::failure::{Context, Result, bail, ensure};

/// The file systems that attacks make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4 with its defaults.
    Ext4,
    /// XFS with its defaults.
    Xfs,
}

impl FileSystem {
    /// The name, as `mkfs` spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// A loop-mounted file system in a file in memory.
#[derive(Debug)]
pub struct Volume {
    image: tempfile::TempPath,
    mount: PathBuf,
    _folder: tempfile::TempDir,
}

impl Volume {
    /// Makes one of `bytes` bytes.
    ///
    /// # Errors
    /// If `mkfs` fails or is not there.
    pub fn make(fs: FileSystem, bytes: u64) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let image = tempfile::Builder::new()
            .prefix("lastgood-volume-")
            .tempfile_in(super::memory())?
            .into_temp_path();
        let mount = folder.path().join("mnt");
        fs::create_dir(&mount)?;
        File::options().write(true).open(&image)?.set_len(bytes)?;
        let force = if fs == FileSystem::Ext4 { "-F" } else { "-f" };
        call(Command::new(format!("mkfs.{}", fs.name())).args(["-q", force]).arg(&image))?;
        Ok(Self { image, mount, _folder: folder })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.mount
    }

    /// Mounts it at its folder.
    ///
    /// # Errors
    /// If `mount` fails, as it does without root.
    pub fn mount(&self) -> Result<()> {
        call(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.mount))
    }

    /// Cuts its power: what was not synced is gone, and nothing can be done with it until it is mounted again.
    ///
    /// # Errors
    /// If `xfs_io` fails or is not there.
    pub fn cut(&self) -> Result<()> {
        call(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.mount))
    }

    /// Unmounts it, once nobody uses it any more.
    ///
    /// # Errors
    /// If somebody still does after a second.
    pub fn unmount(&self) -> Result<()> {
        for _ in 0..50 {
            if call(Command::new("umount").arg(&self.mount)).is_ok() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("cannot unmount {}", self.mount.display())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = call(Command::new("umount").arg("-l").arg(&self.mount));
    }
}

/// Runs a tool that must end well.
pub(super) fn call(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

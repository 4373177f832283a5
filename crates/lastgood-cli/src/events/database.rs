//! The table in a temporary file that goes with the connection, or in a file for other tools.

use std::fs::{File, Permissions, TryLockError};
use std::io::ErrorKind as IoErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lastgood::{Error, ErrorKind};
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use tempfile::NamedTempFile;

use super::table::{self, Filler, Needed};
use super::{Events, query};
use crate::commands::export::{PARTIAL, sweep};
use crate::interrupt::Interrupt;

/// What SQLite may keep of the file in memory, in KiB. What it sorts is limited by it as well.
const CACHE_KIB: u32 = 16 << 10;

/// Nothing of the file has to outlive a crash before it has its name; and nothing is ever rolled back.
const QUICK: &str =
    "pragma journal_mode = off; pragma synchronous = off; pragma temp_store = file;";

/// An empty table in a temporary file, which SQLite removes from its folder as soon as it has it open.
pub(crate) fn temporary() -> Result<Connection> {
    // SQLite makes the file where SQLITE_TMPDIR or TMPDIR says, once it needs more than its cache.
    let connection = Connection::open("").map_err(query::loading_failed)?;
    // Otherwise a name in double quotes that is no column would be taken for text.
    let strict = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false);
    strict.map_err(query::loading_failed)?;
    prepared(connection)
}

fn prepared(connection: Connection) -> Result<Connection> {
    let batch = format!("{QUICK} pragma cache_size = -{CACHE_KIB}; {}", table::create());
    connection.execute_batch(&batch).map_err(query::loading_failed)?;
    Ok(connection)
}

/// Fills the table with `events`, and gives how many they were.
pub(crate) fn load(
    connection: &Connection,
    events: &mut Events<'_>,
    needed: &Needed,
    interrupt: Option<&Interrupt>,
) -> Result<u64> {
    connection.execute_batch("begin").map_err(query::loading_failed)?;
    let mut filler = Filler::new(connection, needed).map_err(query::loading_failed)?;
    let mut rows = 0;
    while let Some(mut event) = events.next()? {
        interrupt.map_or(Ok(()), Interrupt::check)?;
        filler.fill(&mut event)?;
        rows += 1;
    }
    drop(filler);
    connection.execute_batch("commit").map_err(query::loading_failed)?;
    Ok(rows)
}

/// A file that is being written, beside the place that it is for. It is removed unless it is published.
#[derive(Debug)]
pub(crate) struct Export {
    to: PathBuf,
    parent: PathBuf,
    force: bool,
    file: NamedTempFile,
}

impl Export {
    /// Begins a file for `to`, which must not be there yet unless `force` replaces it, nor be in the store.
    pub(crate) fn begin(to: &Path, store: &str, force: bool) -> Result<Self> {
        let shown = to.display();
        let absolute = std::path::absolute(to).with_context(|| format!("{shown} is no path"))?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            bail!(Error::invalid(format!("{shown} names no file")));
        };
        let parent = parent
            .canonicalize()
            .with_context(|| format!("cannot write {shown}: its folder cannot be looked at"))?;
        let to = parent.join(name);
        let root = store.strip_prefix("file://").map(Path::new);
        if root.is_some_and(|root| root.canonicalize().is_ok_and(|root| to.starts_with(root))) {
            bail!(
                Error::invalid(format!("{shown} is in the store"))
                    .with_remedy("export to another place")
            );
        }
        if to.is_dir() {
            bail!(Error::invalid(format!("{shown} is a folder")).with_remedy("name a file in it"));
        }
        if !force && to.symlink_metadata().is_ok() {
            bail!(occupied(&to));
        }
        sweep(&parent);
        let file = Self::create(&parent)?;
        Ok(Self { to, parent, force, file })
    }

    /// A locked file, so that another export does not take it for what a killed one has left. Where there are no locks,
    /// nobody can take one either, and so nobody removes it.
    fn create(parent: &Path) -> Result<NamedTempFile> {
        loop {
            let mut builder = tempfile::Builder::new();
            builder.prefix(PARTIAL).suffix(".db").permissions(Permissions::from_mode(0o666));
            let file = builder
                .tempfile_in(parent)
                .with_context(|| format!("cannot write into {}", parent.display()))?;
            let is_taken = matches!(file.as_file().try_lock(), Err(TryLockError::WouldBlock));
            // Another export may have removed it before it was locked.
            if !is_taken && file.path().exists() {
                return Ok(file);
            }
        }
    }

    /// The empty table in the file.
    pub(crate) fn connection(&self) -> Result<Connection> {
        prepared(Connection::open(self.file.path()).map_err(query::loading_failed)?)
    }

    /// Gives the finished file its name, and gives its bytes.
    pub(crate) fn publish(self, connection: Connection) -> Result<u64> {
        let Self { to, parent, force, file } = self;
        connection.close().map_err(|(_, error)| query::loading_failed(error))?;
        let failed = || format!("cannot write {}", to.display());
        file.as_file().sync_all().with_context(failed)?;
        let bytes = file.as_file().metadata().with_context(failed)?.len();
        let named = if force { file.persist(&to) } else { file.persist_noclobber(&to) };
        if let Err(error) = named {
            if error.error.kind() == IoErrorKind::AlreadyExists {
                bail!(occupied(&to));
            }
            return Err(error.error).with_context(failed);
        }
        File::open(&parent).and_then(|folder| folder.sync_all()).with_context(failed)?;
        Ok(bytes)
    }
}

fn occupied(to: &Path) -> Error {
    Error::new(ErrorKind::Conflict, format!("{} exists already", to.display()))
        .with_remedy("choose another file, or --force to replace it")
}

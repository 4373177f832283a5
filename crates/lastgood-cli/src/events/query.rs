//! What may be asked of the table: one statement that only reads. And what to say of a mistake.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use lastgood::{Error, ErrorKind};
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Statement, ffi};
use serde_json::{Map, json};

use super::plain::hex;
use super::table::{COLUMNS, Needed};
use crate::output::{self, Rows};

/// What a statement wants, as SQLite told when it read it.
#[derive(Debug, Default)]
struct Wants {
    columns: BTreeSet<String>,
    /// The first thing that is no reading.
    refused: Option<String>,
}

/// A statement that only reads, and what it wants.
fn prepare<'c>(connection: &'c mut Connection, sql: &str) -> Result<(Statement<'c>, Wants)> {
    let wants = Arc::new(Mutex::new(Wants::default()));
    let told = Arc::clone(&wants);
    let look = move |context: AuthContext<'_>| {
        let mut wants = told.lock().unwrap_or_else(PoisonError::into_inner);
        look(&mut wants, &context.action)
    };
    connection.authorizer(Some(look)).map_err(loading_failed)?;
    let prepared = connection.prepare(sql);
    let wants = std::mem::take(&mut *wants.lock().unwrap_or_else(PoisonError::into_inner));
    let writes = |what: &str| {
        Error::invalid(format!("the query wants to {what}, and may only read"))
            .with_remedy("use a select; --export writes a database that other tools may change")
    };
    match (prepared, &wants.refused) {
        (_, Some(what)) => Err(writes(what).into()),
        (Ok(statement), None) if !statement.readonly() => Err(writes("change something").into()),
        (Ok(statement), None) => Ok((statement, wants)),
        (Err(error), None) => Err(mistaken(&error).into()),
    }
}

/// Notes a column that is read, and refuses whatever is no reading.
fn look(wants: &mut Wants, action: &AuthAction<'_>) -> Authorization {
    let refused = match action {
        AuthAction::Read { column_name, .. } => {
            wants.columns.insert(column_name.to_ascii_lowercase());
            return Authorization::Allow;
        }
        AuthAction::Select | AuthAction::Recursive => return Authorization::Allow,
        AuthAction::Function { function_name }
            if !function_name.eq_ignore_ascii_case("load_extension") =>
        {
            return Authorization::Allow;
        }
        AuthAction::Function { function_name } => format!("call {function_name}"),
        AuthAction::Delete { table_name } => format!("delete from {table_name}"),
        AuthAction::Insert { table_name } => format!("insert into {table_name}"),
        AuthAction::Update { table_name, .. } => format!("update {table_name}"),
        AuthAction::Attach { filename } => format!("attach {filename:?}"),
        AuthAction::Pragma { pragma_name, .. } => format!("use the pragma {pragma_name}"),
        AuthAction::DropTable { table_name } => format!("drop {table_name}"),
        AuthAction::AlterTable { table_name, .. } => format!("alter {table_name}"),
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => {
            "begin or end a transaction".to_owned()
        }
        _ => "change the database".to_owned(),
    };
    wants.refused.get_or_insert(refused);
    Authorization::Deny
}

/// Checks a query before anything is loaded, and gives the columns that must be.
pub(crate) fn check(connection: &mut Connection, sql: &str) -> Result<Needed> {
    let (statement, wants) = prepare(connection, sql)?;
    drop(statement);
    let none: Option<fn(AuthContext<'_>) -> Authorization> = None;
    connection.authorizer(none).map_err(loading_failed)?;
    // SQLite does not tell of the columns of `using` and of natural joins, so names count as well.
    let words: BTreeSet<String> = sql
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .map(str::to_ascii_lowercase)
        .collect();
    if words.contains("natural") {
        return Ok(Needed::ALL);
    }
    Ok(Needed::those(|name| wants.columns.contains(name) || words.contains(name)))
}

/// Runs a query and prints its rows as they come.
pub(crate) fn run(connection: &mut Connection, sql: &str, as_json: bool) -> Result<()> {
    let (mut statement, _) = prepare(connection, sql)?;
    let names = unique(&statement.column_names().collect::<Vec<_>>());
    let mut table = Rows::new(names.clone());
    let mut rows = statement.query([]).map_err(|error| mistaken(&error))?;
    while let Some(row) = rows.next().map_err(|error| mistaken(&error))? {
        let values = (0..names.len()).map(|i| row.get_ref(i));
        let values = values.collect::<Result<Vec<_>, _>>().map_err(|error| mistaken(&error))?;
        if as_json {
            let members = names.iter().cloned().zip(values.into_iter().map(as_value));
            output::json(&members.collect::<Map<_, _>>())?;
        } else {
            table.push(values.into_iter().map(as_text).collect());
        }
    }
    if !as_json {
        table.finish();
    }
    Ok(())
}

/// Columns of the same name are told apart as SQLite does it: `kind`, `kind:1`.
fn unique(names: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for name in names {
        let others = (1..).map(|n| format!("{name}:{n}"));
        let free = std::iter::once((*name).to_owned()).chain(others).find(|n| !all.contains(n));
        all.extend(free);
    }
    all
}

fn as_value(value: ValueRef<'_>) -> serde_json::Value {
    match value {
        ValueRef::Null => serde_json::Value::Null,
        ValueRef::Integer(number) => json!(number),
        ValueRef::Real(number) if number.is_finite() => json!(number),
        other => json!(as_text(other)),
    }
}

fn as_text(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "null".to_owned(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => format!("{number:?}"),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        ValueRef::Blob(bytes) => hex(bytes),
    }
}

/// What SQLite says of a query that it cannot run, and what it could be asked.
fn mistaken(error: &rusqlite::Error) -> Error {
    let columns: Vec<&str> = COLUMNS.iter().map(|column| column.name).collect();
    let what = match error {
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        rusqlite::Error::SqliteFailure(code, _) if is_full(code.extended_code) => {
            return full(error);
        }
        rusqlite::Error::SqliteFailure(_, Some(text)) => text.clone(),
        rusqlite::Error::Empty => "there is no statement in it".to_owned(),
        rusqlite::Error::MultipleStatement => "it is more than one statement".to_owned(),
        rusqlite::Error::InvalidParameterCount(_, count) => {
            format!("it has {count} parameters, which nobody fills")
        }
        other => other.to_string(),
    };
    Error::invalid(format!("the query cannot be run: {what}")).with_remedy(format!(
        "the table events has the columns {}; `lastgood events --schema` says what they are",
        columns.join(", ")
    ))
}

/// Why the table could not be filled.
pub(crate) fn loading_failed(error: rusqlite::Error) -> Error {
    match error.sqlite_error() {
        Some(code) if is_full(code.extended_code) => full(&error),
        _ => Error::unavailable(format!("the events cannot be put into a table: {error}")),
    }
}

/// True if there is no room, or the file cannot be written.
fn is_full(code: i32) -> bool {
    [ffi::SQLITE_FULL, ffi::SQLITE_IOERR, ffi::SQLITE_CANTOPEN].contains(&(code & 0xff))
}

fn full(error: &rusqlite::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the table does not fit onto the disk: {error}"))
        .with_remedy(
            "choose fewer events with --steps, --rank and --kind, or set SQLITE_TMPDIR to a folder with room",
        )
}

#[cfg(test)]
mod tests;

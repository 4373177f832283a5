//! `lastgood events`: SQL over a run's journal.

use anyhow::{Context, Result, bail};
use lastgood::Error;
use serde_json::json;

use crate::args::Events as Args;
use crate::events::table::{COLUMNS, KINDS, Needed};
use crate::events::{Events, database, query};
use crate::exit::Exit;
use crate::interrupt::Interrupt;
use crate::{output, session};

pub(super) fn run(args: &Args, as_json: bool) -> Result<Exit> {
    if args.schema {
        show_schema(as_json)?;
        return Ok(Exit::Done);
    }
    let place = args.place().context("no store and no run are given")?;
    let (repository, ledger) = session::ledger(&place)?;
    if let Some(to) = &args.export {
        let export = database::Export::begin(to, &repository.store().location(), args.force)?;
        let interrupt = Interrupt::watch()?;
        let connection = export.connection()?;
        let mut events = Events::open(&repository, &ledger, &args.which, !as_json)?;
        let rows = database::load(&connection, &mut events, &Needed::ALL, Some(&interrupt))?;
        interrupt.check()?;
        let bytes = export.publish(connection)?;
        match as_json {
            true => output::json(&json!({"to": to, "events": rows, "bytes": bytes}))?,
            false => {
                output::line(format!("{}: {rows} events, {}", to.display(), output::size(bytes)))
            }
        }
        return Ok(Exit::Done);
    }
    let Some(sql) = &args.sql else {
        bail!(Error::invalid("nothing is asked of the events: --sql is missing").with_remedy(
            "try --sql 'select kind, count(*) from events group by kind'; --schema prints the columns, \
             and `lastgood log --journal` the events themselves"
        ))
    };
    let mut connection = database::temporary()?;
    let needed = query::check(&mut connection, sql)?;
    let mut events = Events::open(&repository, &ledger, &args.which, !as_json)?;
    database::load(&connection, &mut events, &needed, None)?;
    query::run(&mut connection, sql, as_json)?;
    Ok(Exit::Done)
}

fn show_schema(as_json: bool) -> Result<()> {
    if as_json {
        let kinds = KINDS.iter().map(|holds| {
            json!({"kind": holds.kind.to_string(), "members": holds.members, "what": holds.what})
        });
        return output::json(&json!({"table": "events", "columns": COLUMNS,
            "kinds": kinds.collect::<Vec<_>>()}));
    }
    output::line("The table events, a row for each event, in the canonical order:\n");
    let rows: Vec<Vec<String>> = COLUMNS
        .iter()
        .map(|column| vec![column.name.into(), column.sql_type.into(), column.what.into()])
        .collect();
    output::table(&["COLUMN", "TYPE", ""], &rows);
    output::line("\nWhat `event` holds, by the kind of event:\n");
    let rows: Vec<Vec<String>> = KINDS
        .iter()
        .map(|holds| vec![holds.kind.to_string(), holds.members.join(", "), holds.what.into()])
        .collect();
    output::table(&["KIND", "MEMBERS", ""], &rows);
    Ok(())
}

//! SQL over a journal: what a query sees, what it may not do, and what is said of a mistake.

use std::fs;
use std::path::Path;

use lastgood::journal::{JournalOptions, StepRecord, Value};
use lastgood::save::Mode;
use lastgood::state::{Durability, World};
use lastgood::{Dtype, Run, RunOptions};
use serde_json::{Value as Json, json};

use crate::json::{documented, keys};
use crate::tool::{Place, Ran, lastgood};

/// A run whose events hold what JSON and SQLite lack.
fn recorded() -> Place {
    let place = Place::local();
    let options = RunOptions {
        world: World::ALONE,
        journal: Some(JournalOptions::default()),
        environment: [("host.name".to_owned(), "one".to_owned())].into(),
        ..RunOptions::default()
    };
    let mut run = Run::open(&place.repository(), &"r".parse().unwrap(), options).unwrap();
    for step in 1..=8_u64 {
        let loss = if step == 3 { f32::NAN } else { 0.1 * step as f32 };
        let rates = vec![Value::from(1.0 / step as f64), Value::from(2.0)];
        let record = StepRecord::new(step).loss(loss).with("lr", rates);
        run.step(record.with("large", u64::MAX - step).with("bytes", &[0_u8, 255][..]));
    }
    let fault = [("cause", "disk of host two".into()), ("tensor", "layers.0".into())];
    run.event("note", Value::map(fault)).unwrap();
    run.save(8, Mode::Sync, |to| {
        let mut part = to.component("model", "test", Durability::Durable)?;
        part.tensor("w", Dtype::U8, &[4], &[1, 2, 3, 4])
    })
    .unwrap();
    run.close().unwrap();
    place
}

fn asks(place: &Place, more: &[&str], sql: &str) -> Vec<Json> {
    let args = [&["events", "--json", "--sql", sql], more].concat();
    place.on(&args).exits(0).json()
}

#[test]
fn a_query_sees_what_the_log_shows() {
    let place = recorded();
    let counted = asks(&place, &[], "select kind, count(*) as events from events group by kind");
    let log = place.on(&["log", "--journal", "--count", "--json"]).exits(0).json();
    let expected = log.iter().map(|row| json!({"kind": row["kind"], "events": row["events"]}));
    let mut expected: Vec<Json> = expected.collect();
    expected.sort_by_key(|row| row["kind"].as_str().unwrap().to_owned());
    assert_eq!(counted, expected);
    let rows = asks(&place, &[], "select * from events");
    let log = place.on(&["log", "--journal", "--json"]).exits(0).json();
    assert_eq!(rows.len(), log.len());
    for (row, event) in rows.iter().zip(&log) {
        for name in ["step", "rank", "attempt", "kind", "at_ms"] {
            assert_eq!(row[name], event[name], "{row} {event}");
        }
        assert_eq!(row["seq"], event["n"]);
        let at = event["at_ms"].as_u64().unwrap();
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(at);
        assert_eq!(row["at"], humantime::format_rfc3339_millis(at).to_string());
    }
    let lanes = asks(&place, &["--rank", "control"], "select distinct lane, rank from events");
    assert_eq!(lanes, [json!({"lane": "control", "rank": null})]);
}

#[test]
fn numbers_keep_their_value() {
    let place = recorded();
    let sql = "select step, loss, lr, event ->> '$.loss' as told, event ->> '$.large' as large, \
               event ->> '$.bytes' as bytes from events where kind = 'step' and step in (2, 3)";
    let rows = asks(&place, &[], sql);
    let large = |step: u64| (u64::MAX - step).to_string();
    let exact = f64::from(0.2_f32);
    let expected = [
        json!({"step": 2, "loss": exact, "lr": 0.5, "told": exact, "large": large(2),
            "bytes": "00ff"}),
        json!({"step": 3, "loss": null, "lr": 1.0 / 3.0, "told": "NaN", "large": large(3),
            "bytes": "00ff"}),
    ];
    assert_eq!(rows, expected);
    let infinite = asks(&place, &[], "select 9e999 as a, x'00ff' as b, null as c, 1 as c");
    assert_eq!(infinite, [json!({"a": "inf", "b": "00ff", "c": null, "c:1": 1})]);
}

/// Columns that a query does not name are not loaded. SQLite does not tell of all that it reads.
#[test]
fn every_way_to_read_a_column_is_seen() {
    let place = recorded();
    let kinds = "select count(distinct kind) as n from events";
    let all = asks(&place, &[], kinds)[0]["n"].clone();
    assert!(all.as_u64().unwrap() > 4, "{all}");
    for sql in [
        "select count(*) as n from (select kind from events group by \"KIND\")",
        "with k as (select kind from events) select count(distinct kind) as n from k",
        "select count(distinct b.kind) as n from events a join events b using (kind)",
        "select count(distinct substr(kind || seq, 1, length(kind))) as n from events",
    ] {
        assert_eq!(asks(&place, &[], sql)[0]["n"], all, "{sql}");
    }
    let joined = "select count(*) as n from events a join events b using (seq, lane, attempt)";
    let rows = asks(&place, &[], "select count(*) as n from events")[0]["n"].clone();
    assert_eq!(asks(&place, &[], joined)[0]["n"], rows);
    let natural =
        "select count(distinct seq) as n from events natural join (select lane, seq from events)";
    assert_eq!(asks(&place, &["--kind", "step"], natural)[0]["n"], 8);
    let parts = "select count(*) as n from events, json_each(events.event) where seq = 2";
    assert!(asks(&place, &[], parts)[0]["n"].as_u64().unwrap() > 3);
}

#[test]
fn events_are_chosen_before_they_are_loaded() {
    let place = recorded();
    let count = |more: &[&str]| {
        let rows = asks(&place, more, "select count(*) as n from events");
        rows[0]["n"].as_u64().unwrap()
    };
    assert_eq!(count(&["--kind", "step", "--steps", "3..5"]), 3);
    assert_eq!(count(&["--cause", "host two"]), 0, "it is inside of `data`");
    assert_eq!(count(&["--tensor", "layers.0"]), 1);
    assert_eq!(count(&["--rank", "7"]), 0);
    let texts = "select event ->> '$.data.cause' as cause from events";
    let rows = asks(&place, &["--kind", "event"], texts);
    assert_eq!(rows, [json!({"cause": "disk of host two"})]);
    // What an overtaken attempt did is there when it is asked for.
    let options = RunOptions { journal: Some(JournalOptions::default()), ..RunOptions::default() };
    let run = Run::open(&place.repository(), &"r".parse().unwrap(), options).unwrap();
    run.step(1);
    run.close().unwrap();
    assert_eq!((count(&["--kind", "step"]), count(&["--kind", "step", "--all"])), (1, 9));
}

fn refused(place: &Place, sql: &str) -> Ran {
    place.on(&["events", "--sql", sql]).exits(2)
}

#[test]
fn a_query_can_only_read() {
    let place = recorded();
    let outside = place.folder().join("outside.db").display().to_string();
    for (sql, what) in [
        ("delete from events", "delete from events"),
        ("insert into events (step) values (1)", "insert into events"),
        ("update events set step = 1", "update events"),
        ("drop table events", "may only read"),
        ("create table other (a)", "may only read"),
        ("create temp view v as select 1", "may only read"),
        ("alter table events rename to other", "may only read"),
        (&format!("attach '{outside}' as other"), "attach"),
        (&format!("vacuum into '{outside}'"), "may only read"),
        ("pragma journal_mode = wal", "pragma journal_mode"),
        ("begin", "transaction"),
        ("select load_extension('x')", "load_extension"),
        ("select 1; delete from events", "delete from events"),
        ("with d as (select 1) delete from events", "delete from events"),
    ] {
        let ran = refused(&place, sql);
        assert!(ran.err.contains(what) && ran.err.contains("may only read"), "{sql}: {}", ran.err);
        assert!(ran.out.is_empty(), "{sql}");
    }
    assert!(!Path::new(&outside).exists());
}

#[test]
fn a_mistake_is_told_with_the_columns() {
    let place = recorded();
    for (sql, what) in [
        ("select losss from events", "no such column: losss"),
        ("select * from event", "no such table: event"),
        ("select * from events where kind = \"fault\"", "single-quotes"),
        ("selekt 1", "syntax error"),
        ("", "there is no statement"),
        ("-- nothing", "there is no statement"),
        ("select 1; select 2", "more than one statement"),
        ("select ? from events", "1 parameters"),
        ("select json('{') from events", "malformed JSON"),
    ] {
        let ran = refused(&place, sql);
        assert!(ran.err.contains(what), "{sql}: {}", ran.err);
        assert!(ran.err.contains("attempt, step, rank, lane, seq, at_ms"), "{sql}: {}", ran.err);
    }
    let ran = place.on(&["events"]).exits(2);
    assert!(ran.err.contains("--sql 'select kind, count(*)"), "{}", ran.err);
    place.on(&["events", "--sql", "select 1", "--export", "x.db"]).exits(2);
    place.on(&["log", "--steps", "1"]).exits(2);
}

#[test]
fn the_schema_needs_no_store() {
    let shown = lastgood(&["events", "--schema"]).exits(0);
    for name in ["at_ms", "->> '$.loss'", "state.digest", "generation"] {
        assert!(shown.out.contains(name), "{name}: {}", shown.out);
    }
    let schema = lastgood(&["events", "--schema", "--json"]).exits(0).json();
    assert_eq!(keys(&schema[0]), documented("events --schema"));
    let place = recorded();
    let columns = schema[0]["columns"].as_array().unwrap().iter();
    let columns: Vec<&str> = columns.map(|column| column["name"].as_str().unwrap()).collect();
    let row = asks(&place, &[], "select * from events limit 1");
    assert_eq!(keys(&row[0]), columns.iter().map(ToString::to_string).collect());
    lastgood(&["events", "--sql", "select 1"]).exits(2);
}

#[test]
fn rows_of_a_long_table_are_printed_as_they_come() {
    let place = recorded();
    let sql = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 2500) \
               select i, 'x' || (i % 3) as name, 1.0 as one from n";
    let ran = place.on(&["events", "--sql", sql]).exits(0);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), 2501);
    assert_eq!((lines[0], lines[1]), ("i     name  one", "1     x1    1.0"));
    assert_eq!(lines[2500], "2500  x1    1.0");
    assert_eq!(place.on(&["events", "--sql", "select 1 as a where 0"]).exits(0).out, "a\n");
}

#[test]
fn an_export_is_a_database_of_its_own() {
    let place = recorded();
    let to = place.folder().join("events.db");
    let shown = to.display().to_string();
    // What a killed export has left goes with the next one.
    let left = place.folder().join(".lastgood-export-killed.db");
    fs::write(&left, "half").unwrap();
    let export = |more: &[&str]| place.on(&[&["events", "--export", &shown], more].concat());
    let said = export(&["--json"]).exits(0).json();
    assert_eq!(keys(&said[0]), documented("events --export"));
    assert!(!left.exists());
    let count = |path: &Path| {
        let database = rusqlite::Connection::open(path).unwrap();
        let sql = "select count(*), count(event), count(at) from events";
        let row = |row: &rusqlite::Row<'_>| Ok([row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?]);
        database.query_row(sql, [], row).unwrap()
    };
    let events = said[0]["events"].as_i64().unwrap();
    assert_eq!(count(&to), [events; 3]);
    assert_eq!(said[0]["bytes"], fs::metadata(&to).unwrap().len());
    let ran = export(&[]).exits(5);
    assert!(ran.err.contains("exists already") && ran.err.contains("--force"), "{}", ran.err);
    export(&["--force", "--kind", "step"]).exits(0);
    assert_eq!(count(&to), [8; 3]);
    let names = fs::read_dir(place.folder()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.filter(|name| *name != "store").collect::<Vec<_>>(), ["events.db"]);
    let inside = Path::new(&place.store).join("events.db").display().to_string();
    let ran = place.on(&["events", "--export", &inside]).exits(2);
    assert!(ran.err.contains("in the store"), "{}", ran.err);
    place.on(&["events", "--export", &place.folder().display().to_string()]).exits(2);
    place.on(&["events", "--export", "/no/such/folder/x.db"]).exits(1);
}

use std::collections::BTreeSet;
use std::fs;

use super::*;

/// The kinds and their members are those of the format.
#[test]
fn what_the_schema_says_of_kinds_is_what_the_format_says() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/FORMAT.md");
    let page = fs::read_to_string(page).unwrap();
    let begin = page.find("\n### Events\n").unwrap();
    let rows = page[begin..].lines().filter(|line| line.starts_with("| `"));
    let rows: Vec<&str> = rows.take_while(|row| row.matches('|').count() == 4).collect();
    let kinds: Vec<Kind> = KINDS.iter().map(|holds| holds.kind).collect();
    let mut sorted = kinds.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted, Kind::ALL);
    for holds in KINDS {
        let Holds { kind, members, .. } = holds;
        let beginning = format!("| `{kind}` | {} | ", kind.code());
        let row = rows.iter().find(|row| row.starts_with(&beginning));
        let row = row.unwrap_or_else(|| panic!("no row {beginning:?}"));
        let named: BTreeSet<&str> = row.split('`').skip(1).step_by(2).collect();
        // A step has what the program tells, and the page names one of it.
        let is_open = [Kind::STEP, Kind::REWOUND].contains(kind);
        let known = |member: &&&str| named.contains(**member) || is_open;
        assert_eq!(members.iter().filter(known).count(), members.len(), "{row}");
    }
}

#[test]
fn a_column_that_is_computed_needs_what_it_is_computed_from() {
    let needed = Needed::those(|name| name == "at");
    assert!(needed.has("at_ms") && !needed.has("kind"));
    assert!(COLUMNS.iter().all(|column| Needed::ALL.has(column.name)));
}

#[test]
fn counters_and_numbers_become_those_of_sqlite() {
    assert_eq!([integer(7), integer(u64::MAX)], [7, i64::MAX]);
    for (value, expected) in [
        (Value::from(3_u64), Some(3.0)),
        (Value::from(-3_i64), Some(-3.0)),
        (Value::from(0.1_f32), Some(f64::from(0.1_f32))),
        (Value::from(true), None),
        (Value::from("3"), None),
    ] {
        assert_eq!(number(&value), expected, "{value}");
    }
}

//! What is told, and how much of it.

use std::collections::BTreeSet;
use std::fs;

use super::*;

#[test]
fn the_kinds_of_findings_are_those_of_the_page() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/json.md");
    let page = fs::read_to_string(page).unwrap();
    let text = &page[page.find("The kinds of findings are").unwrap()..];
    let text = &text[..text.find("\n\n").unwrap()];
    let on_page: BTreeSet<&str> = text.split('`').skip(1).step_by(2).collect();
    assert_eq!(on_page, KINDS.iter().copied().collect());
}

#[test]
fn a_million_findings_are_told_as_some_and_a_number() {
    let mut findings = Findings::default();
    for number in 0..1_000_000 {
        findings.add(Finding::damage("tensor", number.to_string()));
    }
    findings.add(Finding::note("torn", "x"));
    let all = findings.all();
    assert_eq!(all.len(), TOLD_OF_A_KIND as usize + 2);
    assert!(all.iter().any(|finding| finding.found == "1000000 findings of this kind"));
    assert_eq!(findings.worst(), Some(Severity::Damage));
}

#[test]
fn texts_of_hostile_files_stay_on_their_line() {
    let shown = clean("a\n\u{1b}[2J\u{202e}b");
    assert_eq!(shown, "a\\n\\u{1b}[2J\\u{202e}b");
    assert_eq!(clean(&"x".repeat(10_000)).chars().count(), TEXT_CHARS_MAX + 1);
}

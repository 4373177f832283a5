//! JSON objects whose seal or id is right and whose content is hostile, old, or of the future.

use std::time::{Duration, SystemTime};

use lastgood_format::descriptor::Descriptor;
use lastgood_format::ledger::{Entry, Kind};
use lastgood_format::manifest::Manifest;
use lastgood_format::{Error, ErrorKind, Hash, sealed};
use serde_json::Value;

use crate::corpus::{self, corpus};
use crate::forge::{self, seal_text};

fn check(what: &str, error: Error, kind: ErrorKind, parts: &[&str]) {
    assert_eq!(error.kind(), kind, "{what}: {error}");
    for part in parts {
        assert!(error.message().contains(part), "{what}: {part:?} is not in {error}");
    }
}

const CORRUPT: ErrorKind = ErrorKind::Corrupt;
const INCOMPATIBLE: ErrorKind = ErrorKind::Incompatible;

#[test]
fn descriptors() {
    let id = "0".repeat(32);
    let of = |format: &str, more: &str| {
        seal_text(&format!(
            "{{\"kind\":\"lastgood\",\"format\":{format},\"repository\":\"{id}\"{more}}}"
        ))
    };
    Descriptor::decode(&of("1", "")).unwrap();
    let spaced = format!(" {{ \"repository\" : \"{id}\", \"format\":1 , \"kind\":\"lastgood\"}} ");
    Descriptor::decode(&seal_text(&spaced)).unwrap();
    let error = |stored: Vec<u8>| Descriptor::decode(&stored).unwrap_err();
    // The version is looked at before all that a later version may have changed.
    check("2", error(of("2", "")), INCOMPATIBLE, &["version 2", "(1)"]);
    check("2 with more", error(of("2", ",\"x\":[]")), INCOMPATIBLE, &["version 2", "(1)"]);
    check("2 alone", error(seal_text("{\"format\":2}")), INCOMPATIBLE, &["version 2", "(1)"]);
    check("2^40", error(of("1099511627776", "")), INCOMPATIBLE, &["newer"]);
    check("0", error(of("0", "")), CORRUPT, &["version 0"]);
    for none in ["-1", "1.0", "1e0", "\"1\"", "null", "[1]", "18446744073709551616"] {
        check(none, error(of(none, "")), CORRUPT, &["\"format\""]);
    }
    check("member", error(of("1", ",\"x\":1")), CORRUPT, &["unknown field `x`"]);
    check("twice", error(of("1", ",\"format\":1")), CORRUPT, &["\"format\" stands there twice"]);
    check("kind", error(seal_text(&of_kind("lastbad", &id))), CORRUPT, &["lastbad", "expected"]);
    for bad in ["", "0", &"G".repeat(32), &"A".repeat(32), &"0".repeat(33), "+000"] {
        check(bad, error(seal_text(&of_kind("lastgood", bad))), CORRUPT, &["32"]);
    }
    for bad in ["", "[]", "null", "1", "{", "{}}", "{} {}", "\u{feff}{}"] {
        check(bad, error(seal_text(bad)), CORRUPT, &[]);
    }
    check("two lines", error(seal_text("{\n}")), CORRUPT, &["one line"]);
    let long = of("1", &" ".repeat(4096));
    check("long", error(long.clone()), CORRUPT, &["4096", &long.len().to_string()]);
    let deep = of("1", &format!(",\"x\":{}", "[".repeat(1000)));
    check("deep", error(deep), CORRUPT, &["recursion"]);
}

fn of_kind(kind: &str, id: &str) -> String {
    format!("{{\"kind\":\"{kind}\",\"format\":1,\"repository\":\"{id}\"}}")
}

/// Entry `n` of the corpus with `from` replaced by `to` in its body.
fn edited(n: usize, from: &str, to: &str) -> Vec<u8> {
    let stored = corpus().entries[n - 1].encode().unwrap();
    let body = String::from_utf8(sealed::body(&stored).unwrap().to_vec()).unwrap();
    assert!(body.contains(from), "{from} is not in {body}");
    seal_text(&body.replacen(from, to, 1))
}

fn decode(n: usize, stored: &[u8]) -> Result<Entry, Error> {
    Entry::decode(stored, &corpus::run(), n as u64)
}

#[test]
fn entries() {
    type Case<'c> = (usize, &'c str, &'c str, ErrorKind, &'c [&'c str]);
    let hash = format!("\"prev\":\"{}\"", Hash::of(b"x"));
    let id = "00000010000000000000000000abcdef";
    let cases: &[Case<'_>] = &[
        (2, "\"format\":1", "\"format\":2", INCOMPATIBLE, &["version 2", "(1)"]),
        (2, "\"format\":1", "\"format\":0", CORRUPT, &["version 0"]),
        (2, "\"format\":1,", "", CORRUPT, &["\"format\""]),
        (2, "\"n\":2", "\"n\":3", CORRUPT, &["expected entry 2", "found entry 3"]),
        (2, "\"n\":2", "\"n\":-2", CORRUPT, &[]),
        (2, "\"run\":\"demo\"", "\"run\":\"other\"", CORRUPT, &["run demo", "run other"]),
        (2, "\"run\":\"demo\"", "\"run\":\"../x\"", CORRUPT, &["../x"]),
        (1, "\"prev\":null", &hash, CORRUPT, &["predecessor"]),
        (2, "\"prev\":\"", "\"prev\":null,\"x\":\"", CORRUPT, &["predecessor"]),
        (1, id, "10000000000000000000abcdef", CORRUPT, &["write_id"]),
        (1, id, "+0000010000000000000000000abcdef", CORRUPT, &["write_id"]),
        (1, id, "00000010000000000000000000ABCDEF", CORRUPT, &["write_id"]),
        (1, "2023-", "1923-", CORRUPT, &["RFC 3339"]),
        (1, "2023-", "x023-", CORRUPT, &["RFC 3339"]),
        (1, "\"kind\":\"run.created\"", "\"x\":1", CORRUPT, &["names no kind"]),
        (1, "\"kind\":\"run.created\"", "\"kind\":7", CORRUPT, &["names no kind"]),
        (2, "\"number\":1", "\"number\":\"1\"", CORRUPT, &["attempt.started"]),
        (2, "\"number\":1", "\"numbers\":1", CORRUPT, &["attempt.started", "number"]),
        (2, "\"world_size\":2", "\"world_size\":4294967296", CORRUPT, &["attempt.started"]),
        (2, "\"number\":1", "\"number\":1,\"number\":2", CORRUPT, &["twice"]),
        (2, "\"attempt\":0", "\"attempt\":0,\"attempt\":9", CORRUPT, &["twice"]),
        (3, "\"checkpoint\":\"", "\"checkpoint\":\"0", CORRUPT, &["64 lower-case"]),
        (3, "\"reuses\":[]", "\"reuses\":{}", CORRUPT, &["checkpoint.committed"]),
        (12, "\"kind\"", "\"must_understand\":true,\"kind\"", INCOMPATIBLE, &["moon.landed"]),
        (12, "\"kind\"", "\"must_understand\":1,\"kind\"", CORRUPT, &[]),
    ];
    for (n, from, to, kind, parts) in cases {
        let what = format!("{n}: {from} → {to}");
        check(&what, decode(*n, &edited(*n, from, to)).expect_err(&what), *kind, parts);
    }
    // A later writer may add members to kinds, and need not say that nothing must be understood.
    let expected = decode(2, &edited(2, "\"number\"", "\"number\"")).unwrap();
    let more = edited(2, "\"number\"", "\"must_understand\":false,\"mood\":{},\"number\"");
    assert_eq!(decode(2, &more).unwrap(), expected);
    let known = edited(2, "\"number\"", "\"must_understand\":true,\"number\"");
    assert_eq!(decode(2, &known).unwrap(), expected);
    check("0", decode(0, &edited(2, "\"n\":2", "\"n\":0")).unwrap_err(), CORRUPT, &["entry 1"]);
    let long = edited(6, "rank 1", &"x".repeat(1 << 20));
    check("long", decode(6, &long).unwrap_err(), CORRUPT, &["1048576"]);
    let mut entry = corpus().entries.remove(5);
    entry.kind = Kind::IncidentOpened { reason: "x".repeat(1 << 20), class: None };
    check("long", entry.encode().unwrap_err(), ErrorKind::Invalid, &["1048576"]);
}

#[test]
fn a_clock_that_is_wrong_does_not_stop_a_decision() {
    let mut entry = corpus().entries.remove(0);
    let day = Duration::from_secs(86_400);
    let epoch = SystemTime::UNIX_EPOCH;
    let end = epoch + Duration::from_secs(253_402_300_799);
    for (at, text) in [
        (epoch - day, "1970-01-01T00:00:00.000000Z"),
        (epoch, "1970-01-01T00:00:00.000000Z"),
        (end, "9999-12-31T23:59:59.000000Z"),
        (end + day, "9999-12-31T23:59:59.000000Z"),
    ] {
        entry.at = at;
        assert_eq!(entry.at_text(), text);
        let read = decode(1, &entry.encode().unwrap()).unwrap();
        assert_eq!(read.at, at.clamp(epoch, end));
    }
}

/// The first manifest with `from` replaced by `to`, under its right id.
fn manifest(from: &str, to: &str) -> Result<Manifest, Error> {
    let (stored, _) = corpus().manifests[0].encode().unwrap();
    let text = String::from_utf8(stored).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    let text = text.replacen(from, to, 1);
    Manifest::decode(text.as_bytes(), &Hash::of(text.as_bytes()))
}

#[test]
fn manifests() {
    manifest("{", " {").unwrap();
    let (a, b) = (Hash::of(b"a"), Hash::of(b"b"));
    let (low, high) = (a.min(b), a.max(b));
    manifest("\"reuses\":[]", &format!("\"reuses\":[\"{low}\",\"{high}\"]")).unwrap();
    let fallen = format!("\"reuses\":[\"{high}\",\"{low}\"]");
    let twice = format!("\"reuses\":[\"{low}\",\"{low}\"]");
    let cases: &[(&str, &str, ErrorKind, &[&str])] = &[
        ("\"format\":1", "\"format\":2", INCOMPATIBLE, &["version 2", "(1)"]),
        ("\"format\":1", "\"format\":2,\"more\":1", INCOMPATIBLE, &["version 2", "(1)"]),
        ("\"format\":1,", "\"format\":1,\"format\":2,", CORRUPT, &["twice"]),
        ("\"format\":1,", "\"format\":0,", CORRUPT, &["version 0"]),
        ("\"step\":5", "\"step\":5,\"more\":1", CORRUPT, &["more"]),
        ("\"step\":5", "\"step\":5,\"step\":5", CORRUPT, &["twice"]),
        ("\"step\":5,", "", CORRUPT, &["step"]),
        ("\"step\":5", "\"step\":6", CORRUPT, &["expected \"saves/1/000000000006/0.idx\""]),
        ("\"generation\":0", "\"generation\":1", CORRUPT, &["000000000005.1/0.idx"]),
        ("checkpoint", "certificate", CORRUPT, &["certificate"]),
        ("\"run\":\"demo\"", "\"run\":\".\"", CORRUPT, &["run name"]),
        ("\"world_size\":2", "\"world_size\":3", CORRUPT, &["3 ranks"]),
        ("\"world_size\":2", "\"world_size\":4294967296", CORRUPT, &[]),
        ("\"rank\":1", "\"rank\":0", CORRUPT, &["in order"]),
        ("\"rank\":1", "\"rank\":1,\"rank\":1", CORRUPT, &["duplicate field"]),
        ("saves/1/000000000005/1.idx", "saves/1/000000000005/0.idx", CORRUPT, &["rank 1"]),
        ("saves/1/000000000005/1.idx", "../../lastgood.json", CORRUPT, &["rank 1"]),
        ("\"bytes\":298", "\"bytes\":1073741825", CORRUPT, &["1073741824", "1073741825"]),
        ("\"bytes\":298", "\"bytes\":-1", CORRUPT, &[]),
        ("\"reuses\":[]", &fallen, CORRUPT, &["not in order"]),
        ("\"reuses\":[]", &twice, CORRUPT, &["not in order"]),
        ("\"tensors\":8", "\"tensors\":8.5", CORRUPT, &[]),
        ("}\n", "}\n{}\n", CORRUPT, &["trailing"]),
    ];
    for (from, to, kind, parts) in cases {
        let what = format!("{from} → {to}");
        check(&what, manifest(from, to).expect_err(&what), *kind, parts);
    }
    let none = corpus().manifests.remove(0);
    let none = Manifest { world_size: 0, indexes: Vec::new(), ..none };
    let (stored, id) = none.encode().unwrap();
    check("no ranks", Manifest::decode(&stored, &id).unwrap_err(), CORRUPT, &["0 ranks"]);
}

/// An unknown kind is kept whole, so that the chain can be checked and shown.
#[test]
fn unknown_kinds_are_kept() {
    let entry = corpus().entries.remove(11);
    let body = forge::body(&entry.encode().unwrap());
    assert_eq!((&body["crew"], &body["where"]["sea"]), (&3.into(), &"tranquillity".into()));
    let read = decode(12, &entry.encode().unwrap()).unwrap();
    assert_eq!(read.kind.name(), "moon.landed");
    assert_eq!(read.encode().unwrap(), entry.encode().unwrap());
    let Kind::Unknown { body, .. } = read.kind else { panic!("{:?}", read.kind) };
    assert_eq!(body["where"]["sea"], Value::from("tranquillity"));
}

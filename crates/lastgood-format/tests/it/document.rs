//! `docs/FORMAT.md` says what the code does: its tables against the crate's constants.

use std::collections::{BTreeMap, BTreeSet};

use lastgood_format::chunk::{self, Codec};
use lastgood_format::descriptor::Descriptor;
use lastgood_format::index::{self, ShardIndex};
use lastgood_format::journal::{self, Lane, frame, segment, tail, value};
use lastgood_format::ledger::{Entry, Kind};
use lastgood_format::manifest::Manifest;
use lastgood_format::{Dtype, FORMAT_VERSION, RunName, key, pack};
use serde_json::Value;

use crate::corpus::{self, corpus};
use crate::forge;

pub(crate) const PAGE: &str = include_str!("../../../../docs/FORMAT.md");

/// The cells of every table whose header row is `header`, without backquotes.
fn tables(header: &str) -> Vec<Vec<Vec<String>>> {
    let mut found = Vec::new();
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        if line != header {
            continue;
        }
        let rows = lines.by_ref().skip(1).take_while(|line| line.starts_with('|'));
        let cells = |row: &str| {
            let row = row.trim_matches('|').replace('`', "");
            row.split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        found.push(rows.map(cells).collect());
    }
    found
}

/// The one table with this header.
pub(crate) fn table(header: &str) -> Vec<Vec<String>> {
    let mut found = tables(header);
    assert_eq!(found.len(), 1, "tables headed {header}");
    found.remove(0)
}

fn words(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

#[test]
fn dtypes() {
    let found: Vec<Vec<String>> = table("| name | code | bits | elements |")
        .into_iter()
        .map(|row| row[..3].to_vec())
        .collect();
    let expected: Vec<Vec<String>> = Dtype::ALL
        .iter()
        .map(|d| words(&[d.name(), &d.code().to_string(), &d.bits().to_string()]))
        .collect();
    assert_eq!(found, expected);
    for dtype in Dtype::ALL {
        assert_eq!(Dtype::from_code(dtype.code()), Some(*dtype));
        assert_eq!(dtype.name().parse::<Dtype>().unwrap(), *dtype);
    }
    let codes = (0..=255).filter(|code| Dtype::from_code(*code).is_some());
    assert_eq!(codes.count(), expected.len());
}

#[test]
fn codecs_and_durabilities() {
    let found: Vec<Vec<String>> =
        table("| codec | code | stored bytes |").into_iter().map(|row| row[..2].to_vec()).collect();
    let expected: Vec<Vec<String>> =
        Codec::ALL.iter().map(|c| words(&[c.name(), &c.code().to_string()])).collect();
    assert_eq!(found, expected);
    // The codes of durabilities stand in the index of the corpus, whose components have all three.
    let found = table("| durability | code | meaning |");
    let index = &corpus().indexes[0];
    for row in &found {
        let durability: index::Durability = serde_json::from_value(row[0].clone().into()).unwrap();
        let mut one = index.clone();
        one.components.retain(|component| component.durability == durability);
        (one.components[0].name, one.components[0].owner) = ("x".into(), "y".into());
        let columns = forge::columns(&ShardIndex { components: one.components, ..index.clone() });
        let at = columns.windows(6).position(|w| w == b"x\x01\0\0\0y").unwrap();
        assert_eq!(columns[at + 6].to_string(), row[1], "{}", row[0]);
    }
    assert_eq!(found.len(), 3);
}

#[test]
fn limits() {
    let found: BTreeMap<String, u64> = table("| limit | value |")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].trim_end_matches(" bytes").parse().unwrap()))
        .collect();
    let expected = [
        ("stored descriptor", Descriptor::BYTES_MAX),
        ("stored ledger entry", Entry::BYTES_MAX),
        // The type of heads belongs to the library.
        ("stored ledger head", 256 << 20),
        ("stored manifest", Manifest::BYTES_MAX),
        ("stored shard index", ShardIndex::BYTES_MAX),
        ("columns of a shard index", ShardIndex::BYTES_MAX),
        ("columns for each byte of their frame", ShardIndex::GROWTH_MAX),
        ("all tensor names of a shard index together", index::NAMES_BYTES_MAX),
        ("zstd window of a shard index", 1 << ShardIndex::WINDOW_LOG_MAX),
        ("run name", RunName::BYTES_MAX as u64),
        ("name of a component or an owner", index::NAME_BYTES_MAX as u64),
        ("name of a tensor", index::TENSOR_NAME_BYTES_MAX as u64),
        ("name of an object inside a run", key::OBJECT_BYTES_MAX as u64),
        ("key or value of metadata", index::METADATA_BYTES_MAX as u64),
        ("dimensions of a tensor", index::DIMS_MAX as u64),
        ("payload of a frame", frame::PAYLOAD_BYTES_MAX as u64),
        ("frames of a segment, but for one frame", segment::FRAMES_BYTES as u64),
        ("stored journal segment", segment::BYTES_MAX),
        ("nesting of a value", value::DEPTH_MAX as u64),
        ("smallest chunk size", chunk::CHUNK_BYTES_MIN.into()),
        ("largest chunk size", chunk::CHUNK_BYTES_MAX.into()),
        ("chunk size unless one is chosen", chunk::CHUNK_BYTES_DEFAULT.into()),
    ];
    let expected = expected.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    assert_eq!(found, expected);
}

#[test]
fn magic_numbers_and_versions() {
    let corpus = corpus();
    let index = corpus.indexes[0].encode().unwrap();
    let (_, pack) = &corpus.packs[0];
    let trailer = &pack[pack.len() - pack::TRAILER_BYTES as usize..];
    let headers = tables("| offset | type | content |");
    assert_eq!(headers.len(), 2);
    let trailers = table("| offset in the trailer | type | content |");
    for (table, stored) in [(&headers[0], &index[..]), (&headers[1], pack), (&trailers, trailer)] {
        let magic = table[0][2].strip_prefix("magic ").unwrap().replace("\\0", "\0");
        assert_eq!(table[0][0], "0");
        assert_eq!(magic.as_bytes(), &stored[..8]);
        assert_eq!(words(&["8", "u32", "version"]), table[1]);
        assert_eq!(stored[8..12], FORMAT_VERSION.to_le_bytes());
    }
    let versions = table("| version | changes |");
    assert_eq!(versions.last().unwrap()[0], FORMAT_VERSION.to_string());
    assert!(PAGE.contains(&format!("normative for format version {FORMAT_VERSION}.")));
    assert!(PAGE.contains(&format!("The version is {FORMAT_VERSION}.")));
    assert_eq!(corpus::descriptor().format, FORMAT_VERSION);
    let seal = "last 76 bytes";
    assert!(tables("| bytes | content |")[0][1][0] == seal && forge::seal_text("").len() == 1 + 76);
    let rows = pack::parse(pack).unwrap().len();
    let table_bytes = pack.len() as u64
        - pack::TRAILER_BYTES
        - pack::parse(pack)
            .unwrap()
            .last()
            .map_or(0, |row| row.offset + u64::from(row.stored_bytes));
    let row_bytes = table_bytes / rows as u64;
    assert_eq!(headers[1][4][1], format!("{row_bytes} bytes each"));
}

fn members(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

/// The members that a table names, without those of inner objects.
fn named(rows: &[Vec<String>], inner: &str) -> BTreeSet<String> {
    rows.iter()
        .filter_map(|row| match inner {
            "" => Some(row[0].clone()).filter(|name| !name.contains(['.', '['])),
            inner => row[0].strip_prefix(inner).map(str::to_owned),
        })
        .collect()
}

#[test]
fn members_of_json_objects() {
    let found = tables("| member | type | rule |");
    let [descriptor, entry, head, manifest] = &found[..] else { panic!("{found:?}") };
    let corpus = corpus();
    let stored = corpus::descriptor().encode().unwrap();
    assert_eq!(named(descriptor, ""), members(&forge::body(&stored)));
    let mut first = members(&forge::body(&corpus.entries[0].encode().unwrap()));
    first.insert("must_understand".into());
    assert_eq!(named(entry, ""), first);
    let stored = forge::body(&corpus::head());
    let mut of_head = members(&stored);
    of_head.insert("since".into());
    assert_eq!(named(head, ""), of_head);
    assert_eq!(named(head, "history."), members(&stored["history"]));
    for name in members(&stored["history"]["checkpoints"][0]) {
        assert!(PAGE.contains(&format!("`{name}`")), "{name} of a head's checkpoint");
    }
    let stored = serde_json::to_value(&corpus.manifests[0]).unwrap();
    assert_eq!(named(manifest, ""), members(&stored));
    assert_eq!(named(manifest, "indexes[]."), members(&stored["indexes"][0]));
    // Writers keep the order of the table.
    let (text, _) = corpus.manifests[0].encode().unwrap();
    let text = String::from_utf8(text).unwrap();
    let order = manifest.iter().filter(|row| !row[0].contains('['));
    let places: Vec<_> = order.map(|row| text.find(&format!("\"{}\":", row[0])).unwrap()).collect();
    assert!(places.is_sorted(), "{places:?}");
}

#[test]
fn kinds_and_their_members() {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut kind = String::new();
    for row in table("| kind | member | type | meaning |") {
        if !row[0].is_empty() {
            kind.clone_from(&row[0]);
        }
        let members = found.entry(kind.clone()).or_default();
        members.extend(Some(row[1].clone()).filter(|member| !member.is_empty()));
    }
    let base = members(&forge::body(&corpus().entries[0].encode().unwrap()));
    let mut expected: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in corpus().entries {
        if matches!(entry.kind, Kind::Unknown { .. }) {
            continue;
        }
        let own = members(&forge::body(&entry.encode().unwrap()));
        expected.insert(entry.kind.name().to_owned(), own.difference(&base).cloned().collect());
    }
    assert_eq!(found, expected);
}

#[test]
fn kinds_of_events() {
    let found: Vec<Vec<String>> = table("| kind of event | code | what it says |")
        .into_iter()
        .map(|row| row[..2].to_vec())
        .collect();
    let row = |kind: &journal::Kind| words(&[kind.known_name().unwrap(), &kind.code().to_string()]);
    let expected: Vec<Vec<String>> = journal::Kind::ALL.iter().map(row).collect();
    assert_eq!(found, expected);
    for kind in journal::Kind::ALL.iter().copied().chain([journal::Kind::from_code(999)]) {
        assert_eq!(kind.to_string().parse::<journal::Kind>().unwrap(), kind);
    }
}

#[test]
fn magic_numbers_of_the_journal() {
    let magic = |header: &str| {
        let found = table(header);
        assert_eq!(found[0][0], "0");
        found[0][2].strip_prefix("magic ").unwrap().replace("\\0", "\0")
    };
    assert_eq!(magic("| offset in the frame | type | content |").as_bytes(), frame::MAGIC);
    assert_eq!(magic("| offset in the segment | type | content |").as_bytes(), segment::MAGIC);
    assert_eq!(magic("| offset in the open segment | type | content |").as_bytes(), tail::MAGIC);
    let header = table("| offset in the segment | type | content |");
    assert_eq!(header.last().unwrap()[0], segment::HEADER_BYTES.to_string());
    let fields = table("| offset in the frame | type | content |");
    assert!(fields.iter().any(|row| row[0] == frame::HEADER_BYTES.to_string()));
}

#[test]
fn keys() {
    let run = corpus::run();
    let hash = lastgood_format::Hash::of(b"");
    let save = key::SaveKey { attempt: 3, step: 500, generation: 1 };
    let first = key::SaveKey { generation: 0, ..save };
    let fill = |pattern: &str| {
        pattern
            .replace("<run>", "demo")
            .replace("<n:020>", "00000000000000000009")
            .replace("<save>", "3/000000000500")
            .replace("<rank>", "2")
            .replace("<i>", "1")
            .replace("<id>", &hash.to_string())
            .replace("<attempt>", "3")
            .replace("<lane>", "control")
            .replace("<first:020>", "00000000000000000009")
    };
    let found: Vec<String> =
        table("| key | object | verified by |").iter().map(|row| fill(&row[0])).collect();
    let expected = [
        key::DESCRIPTOR.to_owned(),
        key::ledger_entry(&run, 9),
        key::ledger_head(&run, 9),
        key::in_run(&run, &key::index_in_run(&first, 2)).unwrap(),
        key::in_run(&run, &key::pack_in_run(&first, 2, 1)).unwrap(),
        key::manifest(&run, &hash),
        key::journal_segment(&run, 3, Lane::CONTROL, 9),
    ];
    assert_eq!(found, expected);
    let second = key::pack_in_run(&save, 0, 0);
    assert_eq!(second, "packs/3/000000000500.1/0-0.pack");
    assert!(PAGE.contains(&format!("`{second}`")));
    assert_eq!(key::parse_pack_in_run(&second), Some((save, 0)));
    assert_eq!(key::parse_pack_in_run(&key::pack_in_run(&first, 2, 1)), Some((first, 2)));
    for other in ["packs/3/500.1/0-0.pack", "packs/3/000000000500.0/0-0.pack", "saves/3/1/0-0.pack"]
    {
        assert_eq!(key::parse_pack_in_run(other), None, "{other}");
    }
    for good in ["a", "0", "Z.-_", &"x".repeat(128)] {
        good.parse::<RunName>().unwrap();
    }
    for bad in ["", ".", "..", "-a", "_a", "a/b", "a b", "\u{e9}", "a\0", &"x".repeat(129)] {
        assert!(bad.parse::<RunName>().is_err(), "{bad:?}");
    }
}

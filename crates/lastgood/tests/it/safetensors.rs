//! Safetensors files in and out.

use std::collections::BTreeMap;

use lastgood::restore::Selector;
use lastgood::safetensors::{Content, Export, Reader};
use lastgood::save::Mode;
use lastgood::state::{Capture, Durability, Source, World};
use lastgood::{Dtype, Error, ErrorKind, Repository, Result, Run};
use safetensors::tensor::{SafeTensors, TensorView};

use crate::fixture::{bytes, in_memory, open_alone, run_name};

const DTYPES: [safetensors::Dtype; 22] = {
    use safetensors::Dtype::{
        BF16, BOOL, C64, F4, F6_E2M3, F6_E3M2, F8_E4M3, F8_E4M3FNUZ, F8_E5M2, F8_E5M2FNUZ, F8_E8M0,
        F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64,
    };
    [
        BOOL,
        F4,
        F6_E2M3,
        F6_E3M2,
        U8,
        I8,
        F8_E5M2,
        F8_E4M3,
        F8_E5M2FNUZ,
        F8_E4M3FNUZ,
        F8_E8M0,
        I16,
        U16,
        F16,
        BF16,
        I32,
        U32,
        F32,
        C64,
        F64,
        I64,
        U64,
    ]
};

/// A file with every dtype in shapes from none to five dimensions, odd names, and metadata.
fn file() -> Vec<u8> {
    let shapes: [&[usize]; 6] = [&[], &[0], &[8], &[3, 0], &[2, 4], &[1, 2, 1, 4, 1]];
    let names = ["plain", "🦀\n\"quoted\"\\", "שלום", "a/b", "", "\u{202e}", "x@rank0"];
    let mut tensors = Vec::new();
    for dtype in DTYPES {
        for (i, shape) in shapes.iter().enumerate() {
            let bits = shape.iter().product::<usize>() * dtype.bitsize();
            if bits % 8 == 0 {
                let name = format!("{}.{dtype}.{i}", names[(i + dtype.bitsize()) % names.len()]);
                tensors.push((name, dtype, shape.to_vec(), bytes(tensors.len() as u64, bits / 8)));
            }
        }
    }
    tensors.push((String::new(), safetensors::Dtype::U8, vec![5], bytes(9, 5)));
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
        })
        .collect();
    let metadata = [("format", "pt"), ("🦀", "\n\u{0}"), ("", "")];
    let metadata = metadata.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
    safetensors::serialize(views, Some(metadata.collect())).unwrap()
}

/// What a file says, in an order of its own.
type Said = (BTreeMap<String, (String, Vec<usize>, Vec<u8>)>, BTreeMap<String, String>);

fn said(file: &[u8]) -> Said {
    let (_, header) = SafeTensors::read_metadata(file).unwrap();
    let metadata =
        header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let tensors = SafeTensors::deserialize(file).unwrap();
    let tensors = tensors
        .iter()
        .map(|(name, view)| {
            let said = (view.dtype().to_string(), view.shape().to_vec(), view.data().to_vec());
            (name.to_owned(), said)
        })
        .collect();
    (tensors, metadata)
}

/// A file in memory.
#[derive(Debug)]
struct File(Vec<u8>);

impl Source for File {
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        let found = self.0.get(offset..).and_then(|rest| rest.get(..into.len()));
        into.copy_from_slice(found.ok_or_else(|| Error::corrupt("the file ends before that"))?);
        Ok(())
    }
}

fn import(run: &mut Run, step: u64, file: &File) {
    let reader = Reader::open(file, file.0.len() as u64).unwrap();
    run.save(step, Mode::Sync, |c| reader.capture("weights", "import", c)).unwrap();
}

fn exported(repository: &Repository, component: &str, content: Content) -> Result<Option<Vec<u8>>> {
    let ledger = repository.existing(&run_name())?;
    let id = lastgood::restore::resolve(ledger.history(), &Selector::Latest)?.id;
    let contents = repository.contents(&ledger, &id)?;
    let Some(mut export) = Export::new(repository, &contents, component, content)? else {
        return Ok(None);
    };
    let mut file = Vec::new();
    while let Some(bytes) = export.next_bytes()? {
        file.extend_from_slice(bytes);
    }
    assert_eq!(file.len() as u64, export.bytes());
    Ok(Some(file))
}

#[test]
fn a_file_of_every_dtype_goes_in_and_comes_out() {
    let first = File(file());
    let (_store, repository) = in_memory();
    let mut run = open_alone(&repository, "import");
    import(&mut run, 1, &first);
    assert_eq!(exported(&repository, "weights", Content::Blobs).unwrap(), None);
    let tensors = exported(&repository, "weights", Content::Tensors).unwrap().unwrap();
    assert!(said(&tensors) == said(&first.0));
    assert!(said(&first.0).0.len() > 100);
    // Once more around, and not a byte of the file changes.
    import(&mut run, 2, &File(tensors.clone()));
    assert!(exported(&repository, "weights", Content::Tensors).unwrap() == Some(tensors));
    let error = exported(&repository, "gone", Content::Tensors).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn every_dtype_of_the_file_format_is_one_of_ours() {
    let ours: Vec<&str> = Dtype::ALL.iter().map(|dtype| dtype.name()).collect();
    for dtype in DTYPES {
        assert!(ours.contains(&dtype.to_string().as_str()), "{dtype}");
    }
    assert_eq!(ours.len(), DTYPES.len() + 1, "and the blob");
}

#[test]
fn values_ties_and_shards_are_exported_too() {
    let (_store, repository) = in_memory();
    let data = bytes(1, 12);
    let mut run = open_alone(&repository, "a");
    run.save(1, Mode::Sync, |c| {
        let mut part = c.component("m", "t", Durability::Durable)?;
        for (row, data) in (0..).zip(data.chunks(4)) {
            let extent =
                lastgood_format::layout::NdBox { offsets: vec![row, 0], sizes: vec![1, 4] };
            part.shard("w", Dtype::U8, &[3, 4], extent, data)?;
        }
        part.tied("tied", "w")?;
        part.value("v", &[1, 2])
    })
    .unwrap();
    let of = |content| said(&exported(&repository, "m", content).unwrap().unwrap()).0;
    let (tensors, blobs) = (of(Content::Tensors), of(Content::Blobs));
    let whole = ("U8".to_owned(), vec![3, 4], data);
    assert_eq!(tensors, BTreeMap::from([("tied".into(), whole.clone()), ("w".into(), whole)]));
    assert_eq!(blobs["v"].2, b"[1,2]");
}

#[test]
fn hostile_files_are_refused() {
    let with_header = |length: u64, header: &str, data: &[u8]| {
        let mut file = length.to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(data);
        file
    };
    let sized = |header: &str, data: &[u8]| with_header(header.len() as u64, header, data);
    let tensor = |dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let one = |text: String| format!(r#"{{"a":{text}}}"#);
    let overlapping =
        format!(r#"{{"a":{},"b":{}}}"#, tensor("U8", "[4]", 0, 4), tensor("U8", "[4]", 2, 6));
    let gap = format!(r#"{{"a":{},"b":{}}}"#, tensor("U8", "[2]", 0, 2), tensor("U8", "[2]", 4, 6));
    let cases = [
        ("nothing", vec![]),
        ("seven bytes", vec![0; 7]),
        ("a length alone", 2u64.to_le_bytes().to_vec()),
        ("a huge length", with_header(u64::MAX, "{}", &[])),
        ("a length beyond the end", with_header(100, "{}", &[])),
        ("no JSON", sized("{{", &[])),
        ("no UTF-8", [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()),
        ("overlapping tensors", sized(&overlapping, &[0; 6])),
        ("a gap", sized(&gap, &[0; 6])),
        ("more bytes than the shape", sized(&one(tensor("U8", "[2]", 0, 4)), &[0; 4])),
        ("fewer bytes than the shape", sized(&one(tensor("F32", "[2]", 0, 4)), &[0; 4])),
        ("an end before the beginning", sized(&one(tensor("U8", "[2]", 4, 2)), &[0; 4])),
        ("data cut off", sized(&one(tensor("U8", "[4]", 0, 4)), &[0; 3])),
        ("data too long", sized(&one(tensor("U8", "[4]", 0, 4)), &[0; 5])),
        ("a shape that overflows", sized(&one(tensor("U8", "[4294967296,4294967296]", 0, 0)), &[])),
        ("no dtype", sized(&one(tensor("F7", "[4]", 0, 4)), &[0; 4])),
        ("a shape of a lie", sized(&one(tensor("U8", "[-1]", 0, 4)), &[0; 4])),
    ];
    for (what, file) in cases {
        let error = refusal(file);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
    let whole = file();
    for cut in [8, 9, whole.len() / 2, whole.len() - 1] {
        assert_eq!(refusal(whole[..cut].to_vec()).kind(), ErrorKind::Corrupt, "{cut}");
    }
}

fn refusal(file: Vec<u8>) -> Error {
    let file = File(file);
    let opened = Reader::open(&file, file.0.len() as u64);
    let captured =
        opened.and_then(|reader| reader.capture("m", "t", &mut Capture::new(World::ALONE)));
    captured.unwrap_err()
}

//! Files as torch and DCP write them, made byte by byte.

use std::fs;
use std::path::Path;

/// The instructions of a pickle that leaves one value on the stack.
pub(crate) type Code = Vec<u8>;

pub(crate) fn text(value: &str) -> Code {
    let mut code = vec![b'X'];
    code.extend((value.len() as u32).to_le_bytes());
    code.extend(value.as_bytes());
    code
}

pub(crate) fn int(value: i64) -> Code {
    let mut code = vec![0x8a, 8];
    code.extend(value.to_le_bytes());
    code
}

pub(crate) fn none() -> Code {
    b"N".to_vec()
}

pub(crate) fn name(module: &str, name: &str) -> Code {
    format!("c{module}\n{name}\n").into_bytes()
}

pub(crate) fn tuple(items: &[Code]) -> Code {
    [b"(".as_slice(), &items.concat(), b"t"].concat()
}

pub(crate) fn list(items: &[Code]) -> Code {
    [b"](".as_slice(), &items.concat(), b"e"].concat()
}

pub(crate) fn dict(pairs: &[(Code, Code)]) -> Code {
    let pairs: Vec<u8> =
        pairs.iter().flat_map(|(key, value)| [key.clone(), value.clone()].concat()).collect();
    [b"}(".as_slice(), &pairs, b"u"].concat()
}

pub(crate) fn call(callee: Code, args: &[Code]) -> Code {
    [callee, tuple(args), b"R".to_vec()].concat()
}

/// An object whose attributes are set.
pub(crate) fn object(class: Code, attributes: &[(&str, Code)]) -> Code {
    let pairs: Vec<(Code, Code)> =
        attributes.iter().map(|(name, value)| (text(name), value.clone())).collect();
    [class, b")\x81".to_vec(), dict(&pairs), b"b".to_vec()].concat()
}

pub(crate) fn stream(value: &Code) -> Vec<u8> {
    [b"\x80\x02".as_slice(), value, b"."].concat()
}

/// A tensor of f32 in storage `key`.
pub(crate) fn tensor(key: &str, count: i64, shape: &[i64], strides: &[i64]) -> Code {
    let sizes = |sizes: &[i64]| tuple(&sizes.iter().map(|size| int(*size)).collect::<Vec<_>>());
    let class = name("torch", "FloatStorage");
    let id = tuple(&[text("storage"), class, text(key), text("cpu"), int(count)]);
    let storage = [id, b"Q".to_vec()].concat();
    let hooks = call(name("collections", "OrderedDict"), &[]);
    let args = [storage, int(0), sizes(shape), sizes(strides), b"\x89".to_vec(), hooks];
    call(name("torch._utils", "_rebuild_tensor_v2"), &args)
}

/// `count` numbers of a dtype that no class of storages is of, in storage `0` of as many bytes.
pub(crate) fn tensor_of(dtype: &str, count: i64) -> Code {
    let class = name("torch.storage", "UntypedStorage");
    let id = tuple(&[text("storage"), class, text("0"), text("cpu"), int(count)]);
    let storage = [id, b"Q".to_vec()].concat();
    let hooks = call(name("collections", "OrderedDict"), &[]);
    let (shape, strides) = (tuple(&[int(count)]), tuple(&[int(1)]));
    let dtype = name("torch", dtype);
    let args = [storage, int(0), shape, strides, b"\x89".to_vec(), hooks, dtype];
    call(name("torch._utils", "_rebuild_tensor_v3"), &args)
}

/// A zip file with stored records, with or without their checksums.
pub(crate) fn zip(records: &[(&str, &[u8])], with_sums: bool) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in records {
        let begin = file.len() as u32;
        let crc = if with_sums { crc32fast::hash(bytes) } else { 0 };
        let mut common = vec![0, 0, 0, 0, 0, 0, 0, 0];
        common.extend(crc.to_le_bytes());
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        file.extend(b"PK\x03\x04\x00\x00");
        file.extend(&common);
        file.extend(name.as_bytes());
        file.extend(*bytes);
        directory.extend(b"PK\x01\x02\x00\x00\x00\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(begin.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let begin = file.len() as u32;
    file.extend(&directory);
    file.extend(b"PK\x05\x06\x00\x00\x00\x00");
    file.extend((records.len() as u16).to_le_bytes());
    file.extend((records.len() as u16).to_le_bytes());
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(begin.to_le_bytes());
    file.extend([0, 0]);
    file
}

pub(crate) fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A file of `torch.save` with one storage.
pub(crate) fn torch(value: &Code, storage: &[f32]) -> Vec<u8> {
    let bytes = floats(storage);
    let pickle = stream(value);
    zip(
        &[
            ("a/data.pkl", &pickle),
            ("a/byteorder", b"little"),
            ("a/data/0", &bytes),
            ("a/version", b"3\n"),
        ],
        true,
    )
}

/// What a chunk of DCP's table is: where it begins, its size, and where its bytes are, if they are stored.
pub(crate) struct Chunk {
    pub(crate) offset: i64,
    pub(crate) size: i64,
    pub(crate) stored: Option<(&'static str, i64, i64)>,
}

/// The `.metadata` of one tensor `w` of one dimension.
pub(crate) fn dcp_metadata(shape: i64, chunks: &[Chunk]) -> Vec<u8> {
    const MODULE: &str = "torch.distributed.checkpoint.metadata";
    let size = |size: i64| call(name("torch", "Size"), &[tuple(&[int(size)])]);
    let described: Vec<Code> = chunks
        .iter()
        .map(|chunk| {
            let class = name(MODULE, "ChunkStorageMetadata");
            object(class, &[("offsets", size(chunk.offset)), ("sizes", size(chunk.size))])
        })
        .collect();
    let properties = tuple(&[name("torch", "float32"), none(), b"\x89".to_vec()]);
    let properties =
        [name(MODULE, "TensorProperties"), b")\x81".to_vec(), properties, b"b".to_vec()].concat();
    let member = object(
        name(MODULE, "TensorStorageMetadata"),
        &[("properties", properties), ("size", size(shape)), ("chunks", list(&described))],
    );
    let stored: Vec<(Code, Code)> = chunks
        .iter()
        .filter_map(|chunk| {
            let (file, offset, len) = chunk.stored?;
            let index = object(
                name(MODULE, "MetadataIndex"),
                &[("fqn", text("w")), ("offset", size(chunk.offset)), ("index", int(0))],
            );
            let place = object(
                name("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
                &[("relative_path", text(file)), ("offset", int(offset)), ("length", int(len))],
            );
            Some((index, place))
        })
        .collect();
    stream(&object(
        name(MODULE, "Metadata"),
        &[
            ("state_dict_metadata", dict(&[(text("w"), member)])),
            ("planner_data", none()),
            ("storage_data", dict(&stored)),
        ],
    ))
}

/// A checkpoint of DCP in `folder`: a tensor of 8 elements, half of it in each of two files.
pub(crate) fn dcp(folder: &Path) -> Vec<Chunk> {
    fs::create_dir_all(folder).unwrap();
    let mut chunks = Vec::new();
    for (rank, file) in ["__0_0.distcp", "__1_0.distcp"].into_iter().enumerate() {
        let values: Vec<f32> = (0..4).map(|i| (rank * 4 + i) as f32).collect();
        let bytes = torch(&tensor("0", 4, &[4], &[1]), &values);
        fs::write(folder.join(file), &bytes).unwrap();
        let stored = Some((file, 0, bytes.len() as i64));
        chunks.push(Chunk { offset: rank as i64 * 4, size: 4, stored });
    }
    fs::write(folder.join(".metadata"), dcp_metadata(8, &chunks)).unwrap();
    chunks
}

/// The number that files of `torch.save` from before 1.6 begin with.
pub(crate) fn magic() -> Code {
    b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19".to_vec()
}

/// A file of `torch.save` from before 1.6: five pickles of `protocol`, and a storage `0` behind its count.
pub(crate) fn legacy(protocol: u8, pickles: &[Code; 5], count: i64, storage: &[f32]) -> Vec<u8> {
    let stream = |value: &Code| {
        let body = [value, b".".as_slice()].concat();
        let frame = match protocol {
            4.. => [b"\x95".as_slice(), &(body.len() as u64).to_le_bytes()].concat(),
            _ => Vec::new(),
        };
        [vec![0x80, protocol], frame, body].concat()
    };
    let mut file: Vec<u8> = pickles.iter().flat_map(stream).collect();
    file.extend(count.to_le_bytes());
    file.extend(floats(storage));
    file
}

/// The five pickles of a file with `value`, whose only storage is `0`.
pub(crate) fn legacy_pickles(value: Code) -> [Code; 5] {
    let system = dict(&[(text("little_endian"), b"\x88".to_vec())]);
    [magic(), int(1001), system, value, list(&[text("0")])]
}

/// A file of safetensors with tensors of one f32 each.
pub(crate) fn safetensors(names: &[&str]) -> Vec<u8> {
    let tensor = |(i, name): (usize, &&str)| {
        let (begin, end) = (4 * i, 4 * i + 4);
        format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{begin},{end}]}}"#)
    };
    let tensors: Vec<String> = names.iter().enumerate().map(tensor).collect();
    let header = format!("{{{}}}", tensors.join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(vec![0; 4 * names.len()]);
    file
}

use std::fs;

use tempfile::{NamedTempFile, TempDir};

use super::*;

/// `bytes` bytes of which no two pages are equal, in parts of the sizes that `cuts` repeats.
fn parts(bytes: usize, cuts: &[usize]) -> Vec<Bytes> {
    let all: Bytes = (0..bytes).map(|i| (i * 31 + i / ALIGN) as u8).collect();
    let (mut parts, mut begin) = (Vec::new(), 0);
    for cut in cuts.iter().cycle() {
        if begin == bytes {
            break;
        }
        let end = bytes.min(begin + cut);
        parts.push(all.slice(begin..end));
        begin = end;
    }
    parts
}

#[test]
fn files_of_every_size_and_cut_have_the_bytes() {
    let folder = TempDir::new().unwrap();
    let around = |n: usize| [n - 1, n, n + 1];
    let sizes = [around(DIRECT_MIN), around(STRIDE), around(2 * STRIDE + ALIGN)].concat();
    for (i, bytes) in [0, 1].into_iter().chain(sizes).enumerate() {
        for (j, cuts) in [&[usize::MAX / 2][..], &[16, 1 << 20, 77], &[ALIGN]].iter().enumerate() {
            let (path, parts) = (folder.path().join(format!("{i}-{j}")), parts(bytes, cuts));
            create(&path, &parts).unwrap().sync_all().unwrap();
            assert!(fs::read(&path).unwrap() == parts.concat(), "{bytes} bytes in {cuts:?}");
        }
    }
}

#[test]
fn a_file_that_exists_stays_as_it_is() {
    let file = NamedTempFile::new().unwrap();
    fs::write(&file, "before").unwrap();
    let error = create(file.path(), &parts(2 * DIRECT_MIN, &[ALIGN])).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&file).unwrap(), b"before");
}

/// What a file system does that has larger blocks than ours.
#[test]
#[cfg(target_os = "linux")]
fn a_direct_write_that_is_refused_goes_through_the_cache() {
    // Beside the code, since a temporary folder may be in memory, where any address will do.
    let file = NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let (path, file) = (file.path(), file.as_file());
    set_direct(file, true).unwrap();
    let mut direct = Direct { file, is_direct: true };
    let mut memory = take_memory().unwrap();
    let room = &mut room(&mut memory)[..3 * ALIGN];
    room.copy_from_slice(&parts(3 * ALIGN, &[ALIGN]).concat());
    direct.write(&room[..ALIGN]).unwrap();
    assert!(direct.is_direct, "an aligned write must have been taken");
    direct.write(&room[ALIGN + 1..3 * ALIGN - 1]).unwrap();
    assert!(!direct.is_direct, "an address between blocks must have been refused");
    let expected = [&room[..ALIGN], &room[ALIGN + 1..3 * ALIGN - 1]].concat();
    assert!(fs::read(path).unwrap() == expected);
}

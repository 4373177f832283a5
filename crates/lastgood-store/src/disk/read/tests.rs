use std::fs;

use tempfile::NamedTempFile;

use super::*;

/// A file beside the code, since a temporary folder may be in memory, where there is nothing to read past; and its
/// bytes, of which no two pages are equal.
fn file(bytes: usize) -> (NamedTempFile, Vec<u8>) {
    let content: Vec<u8> = (0..bytes).map(|i| (i * 31 + i / ALIGN) as u8).collect();
    let file = NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    fs::write(file.path(), &content).unwrap();
    (file, content)
}

/// Writes the file out and takes it out of the page cache.
fn forget(file: &File) {
    file.sync_all().unwrap();
    fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

#[test]
fn ranges_of_every_size_and_place_have_the_bytes() {
    let (file, content) = file(3 * STRIDE + ALIGN + 77);
    let around = |n: usize| [n - 1, n, n + 1];
    let sizes = [around(DIRECT_MIN), around(STRIDE), around(2 * STRIDE + ALIGN)].concat();
    for bytes in [0, 1].into_iter().chain(sizes) {
        for offset in [0, 1, ALIGN - 1, ALIGN, 3 * ALIGN + 7, content.len() - bytes] {
            for is_cold in [true, false] {
                if is_cold {
                    forget(file.as_file());
                }
                let mut target = vec![1; bytes];
                fill(&File::open(file.path()).unwrap(), offset as u64, &mut target).unwrap();
                let equal = target == content[offset..offset + bytes];
                assert!(equal, "{bytes} bytes at {offset}, cold: {is_cold}");
            }
        }
    }
}

#[test]
fn a_range_that_the_file_does_not_have_is_its_end() {
    let (file, content) = file(2 * STRIDE + 77);
    for (offset, bytes) in [
        (0, content.len() + 1),
        (ALIGN + 1, content.len() - ALIGN),
        (content.len() - 5, DIRECT_MIN),
        (content.len(), DIRECT_MIN),
        (content.len() + 9 * ALIGN, STRIDE),
    ] {
        for is_cold in [true, false] {
            if is_cold {
                forget(file.as_file());
            }
            let opened = File::open(file.path()).unwrap();
            let error = fill(&opened, offset as u64, &mut vec![0; bytes]).unwrap_err();
            let case = format!("{bytes} bytes at {offset}, cold: {is_cold}");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{case}");
        }
    }
}

/// The bytes of the file that the page cache has, as far as looking at each page tells.
#[cfg(target_os = "linux")]
fn cached(file: &File, bytes: usize) -> usize {
    (0..bytes).step_by(ALIGN).filter(|at| is_cached(file, *at as u64, 1)).count() * ALIGN
}

#[test]
#[cfg(target_os = "linux")]
fn what_is_not_in_the_cache_is_read_past_it() {
    let (file, content) = file(4 * STRIDE);
    let opened = File::open(file.path()).unwrap();
    fadvise(&opened, 0, None, Advice::Random).unwrap();
    forget(file.as_file());
    let mut target = vec![0; content.len()];
    fill(&opened, 0, &mut target).unwrap();
    assert!(target == content);
    set_direct(&opened, false).unwrap();
    let pages = cached(&opened, content.len());
    // To look for them may have brought in a page for each stride.
    assert!(pages <= content.len() / 100, "{pages} bytes are in the cache");
}

#[test]
#[cfg(target_os = "linux")]
fn what_is_in_the_cache_is_read_from_there() {
    let (file, content) = file(STRIDE);
    let opened = File::open(file.path()).unwrap();
    assert!(is_cached(&opened, 0, content.len()));
    let mut direct = Direct { file: &opened, is_direct: false, is_possible: true };
    let mut memory = take_memory().unwrap();
    let room = room(&mut memory);
    let mut target = vec![0; content.len()];
    assert!(!direct.read(room, 0, &mut target).unwrap(), "it must be read through the cache");
    forget(file.as_file());
    assert!(direct.read(room, 0, &mut target).unwrap(), "it must be read past the cache");
    assert!(target == content);
}

/// What a file system does that has larger blocks than ours.
#[test]
#[cfg(target_os = "linux")]
fn a_direct_read_that_is_refused_goes_through_the_cache() {
    let (file, content) = file(STRIDE);
    forget(file.as_file());
    let mut direct = Direct { file: file.as_file(), is_direct: false, is_possible: true };
    let mut memory = take_memory().unwrap();
    // No device takes an odd address.
    let room = &mut room(&mut memory)[1..1 + 2 * ALIGN];
    let mut target = vec![0; ALIGN];
    assert!(!direct.read(room, 0, &mut target).unwrap());
    assert!(!direct.is_possible, "nobody tries again");
    direct.set_direct(false).unwrap();
    fill(file.as_file(), 0, &mut target).unwrap();
    assert!(target == content[..ALIGN]);
}

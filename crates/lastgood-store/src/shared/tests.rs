use std::fs;

use super::*;

#[test]
fn what_is_written_is_there_for_whoever_opens_it() -> Result<()> {
    let held = SharedMemory::create("test")?;
    held.grow(1 << 20)?;
    let opened = SharedMemory::open(&held.path())?;
    let mut map = opened.map(4096..8192)?;
    map[1] = 7;
    drop((map, opened));
    let mut byte = [0];
    held.read_at(4097, &mut byte)?;
    assert_eq!(byte, [7]);
    held.write_at(4098, &[8])?;
    assert_eq!(held.map(0..8192)?[4097..4099], [7, 8]);
    Ok(())
}

#[test]
fn memory_of_its_own_is_zeros_of_any_size() -> Result<()> {
    for bytes in [1, 4095, 1 << 21, (5 << 20) + 1] {
        let mut map = Mapped::zeroed(bytes)?;
        assert!(map.len() == bytes && map.iter().all(|byte| *byte == 0));
        map[bytes - 1] = 1;
    }
    assert_eq!(
        Mapped::zeroed(usize::MAX / 2).map(drop).map_err(|e| e.kind()),
        Err(ErrorKind::Overloaded)
    );
    Ok(())
}

#[test]
fn one_process_writes() -> Result<()> {
    let held = SharedMemory::create("test")?;
    let (one, other) = (SharedMemory::open(&held.path())?, SharedMemory::open(&held.path())?);
    assert!(one.lock()?);
    assert!(!other.lock()?);
    one.grow(4096)?;
    let (map, private) = (one.map(0..4096)?, one.map_private(0..4096)?);
    drop(one);
    assert!(!other.lock()?);
    drop(map);
    assert!(other.lock()?);
    drop(private);
    Ok(())
}

#[test]
fn a_private_map_shows_what_is_there_until_it_has_pages_of_its_own() -> Result<()> {
    let held = SharedMemory::create("test")?;
    held.grow(1 << 16)?;
    held.write_at(0, b"before")?;
    let mut private = held.map_private(0..1 << 16)?;
    assert_eq!(&private[..6], b"before");
    private[8] = 1;
    private.populate()?;
    held.write_at(0, b"behind")?;
    assert_eq!(&private[..6], b"before");
    let mut byte = [9];
    held.read_at(8, &mut byte)?;
    assert_eq!(byte, [0]);
    Ok(())
}

#[test]
fn memory_is_given_back_and_never_cut_off() -> Result<()> {
    let held = SharedMemory::create("test")?;
    held.grow(1 << 20)?;
    let map = held.map(0..1 << 20)?;
    held.write_at(0, &[1; 1 << 16])?;
    let blocks =
        || held.file.metadata().map(|found| std::os::unix::fs::MetadataExt::blocks(&found));
    let before = blocks().unwrap_or_default();
    held.release(0..1 << 16)?;
    assert!(blocks().unwrap_or_default() < before);
    assert_eq!(map[0], 0);
    assert!(held.file.set_len(0).is_err());
    assert_eq!(held.bytes()?, 1 << 20);
    Ok(())
}

#[test]
fn what_is_no_such_memory_is_refused() -> Result<()> {
    let held = SharedMemory::create("test")?;
    held.grow(4096)?;
    for (begin, end) in [(0, 8192), (4096, 4096), (4096, 0), (0, u64::MAX)] {
        assert_eq!(held.map(begin..end).map(drop).map_err(|e| e.kind()), Err(ErrorKind::Invalid));
    }
    let folder = tempfile::tempdir().map_err(|e| Error::internal(e.to_string()))?;
    let file = folder.path().join("file");
    fs::write(&file, [0; 4096]).map_err(|e| Error::internal(e.to_string()))?;
    let kind = |path: &str| SharedMemory::open(path).map(drop).map_err(|e| e.kind());
    assert_eq!(kind(&file.display().to_string()), Err(ErrorKind::Invalid));
    assert_eq!(kind("/proc/self/fd/99999"), Err(ErrorKind::NotFound));
    Ok(())
}

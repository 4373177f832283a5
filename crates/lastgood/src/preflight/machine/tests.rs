use super::*;

#[test]
fn linux_says_what_is_left() {
    assert!(memory_available().is_some_and(|bytes| bytes > 1 << 20));
    assert!(space_available(Path::new("/")).is_some());
    assert!(space_available(Path::new("/no/such/folder")).is_some());
}

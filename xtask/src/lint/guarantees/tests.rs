use super::*;

#[test]
fn what_a_row_names_is_checked() {
    assert_eq!(cited("Nothing partial (I3, I12), IO").collect::<Vec<_>>(), ["I3", "I12"]);
    assert_eq!(paths("`a/b.rs`, `word`, `cargo x/y z`").collect::<Vec<_>>(), ["a/b.rs"]);
    assert!(exists("xtask/src/lint/guarantees.rs::exists").is_ok());
    assert!(exists("xtask/src/lint/guarantees.rs::gone").is_err());
    assert!(exists("xtask/src/gone.rs").is_err());
}

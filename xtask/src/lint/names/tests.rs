use super::*;

#[test]
fn declarations() {
    assert_eq!(module("pub(crate) mod utils;"), Some("utils"));
    assert_eq!(module("    mod ledger {"), Some("ledger"));
    assert_eq!(module("// mod utils;"), None);
    assert_eq!(type_name("pub struct SaveManager<T> {"), Some(("SaveManager", "Manager")));
    assert_eq!(type_name("enum Utility {"), None);
    assert_eq!(type_name("pub(super) trait Store: Send {"), None);
}

#[test]
fn unfinished_work_has_an_owner() {
    let mark = MARKS[0];
    assert_eq!(unowned(&format!("// {mark}: later")), Some(mark));
    assert_eq!(unowned(&format!("// {mark}(ann): later")), None);
    assert_eq!(unowned("let method = METHOD;"), None);
    assert_eq!(unowned("todo list"), None);
}

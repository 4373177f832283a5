use super::*;

#[test]
fn columns_of_the_same_name_are_told_apart() {
    assert_eq!(unique(&["a", "b", "a", "a"]), ["a", "b", "a:1", "a:2"]);
    assert_eq!(unique(&["a", "a:1", "a"]), ["a", "a:1", "a:2"]);
}

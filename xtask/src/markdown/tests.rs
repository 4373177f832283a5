use super::*;

const PAGE: &str = "# Title\n\ntext\n```sh\n# not a title\n~~~\n```\n## Part\n";

#[test]
fn code_blocks_are_told_from_prose() {
    let prose: Vec<_> = prose(PAGE).collect();
    assert_eq!(prose, [(1, "# Title"), (2, ""), (3, "text"), (8, "## Part")]);
    assert_eq!(code(PAGE).collect::<Vec<_>>()[0], (5, "# not a title"));
}

#[test]
fn headings() {
    assert_eq!(heading("## Must hold"), Some((2, "Must hold")));
    assert_eq!(heading("#no heading"), None);
    assert_eq!(heading("text"), None);
    assert_eq!(anchor("Must hold: I1, `x_y`"), "must-hold-i1-x_y");
}

#[test]
fn links_and_quotes() {
    assert_eq!(links("see [a](b.md#c) and [d](https://e \"f\")."), ["b.md#c", "https://e"]);
    assert_eq!(links("no (link)"), [""; 0]);
    assert_eq!(quoted("a `b` c `d`").collect::<Vec<_>>(), ["b", "d"]);
}

#[test]
fn rows() {
    assert_eq!(row("| a | b |"), Some(vec!["a", "b"]));
    assert_eq!(row("|---|:-:|"), None);
    assert_eq!(row("a | b"), None);
}

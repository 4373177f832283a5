use super::*;

#[test]
fn reasons_are_found() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\na.workspace = true # to do b\n\
        c = { version = \"1\", optional = true }\nd = \"1\" #\n# a comment = no dependency\n\
        [dev-dependencies]\ne = \"1\"\n[target.'cfg(unix)'.dependencies]\nf = \"1\" # g\n";
    let found: Vec<_> =
        dependencies(manifest).into_iter().map(|d| (d.line, d.name, d.reason)).collect();
    let expected =
        [(4, "a", Some("to do b")), (5, "c", None), (6, "d", None), (11, "f", Some("g"))];
    assert_eq!(found, expected);
}

use super::*;

#[test]
fn commands_are_recognised() {
    assert_eq!(word_after("$ lastgood ls --store x", "lastgood "), Some("ls"));
    assert_eq!(
        word_after("cargo run --release -- demo --kills 5", "cargo run --release -- "),
        Some("demo")
    );
    assert_eq!(word_after("lastgood --store URL", "lastgood "), Some("--store"));
    assert_eq!(word_after("lastgood <command>", "lastgood "), None);
    assert_eq!(word_after("use lastgood", "lastgood "), None);
    assert_eq!(dashed("PowerCuts"), "power-cuts");
}

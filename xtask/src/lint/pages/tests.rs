use super::*;

#[test]
fn links_are_followed() {
    let page = "# Title\n\n## Must hold\n";
    let check = |target: &str| follow(Path::new("docs/page.md"), page, target).is_ok();
    assert!(check("#must-hold"));
    assert!(!check("#never"));
    assert!(check("../Cargo.toml"));
    assert!(!check("Cargo.toml"));
    assert!(check("https://example.invalid/x"));
}

#[test]
fn code_and_links_of_the_readme_do_not_count() {
    let page = "# One\ntwo three\n```sh\nfour five\n```\n| six | - |\n## Read on\nseven\n";
    assert_eq!(readme_words(page), 4);
}

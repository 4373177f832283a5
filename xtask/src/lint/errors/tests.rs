use super::*;

#[test]
fn sections_end_with_their_comment() {
    let source = "/// Reads.\n///\n/// # Errors\n/// `Corrupt` if\n/// damaged.\nfn a() {}\n\
        /// # Errors\n/// Many.\n/// # Panics\n/// `Invalid`.\nfn b() {}\n";
    let expected = vec![(3, "`Corrupt` if damaged. ".to_owned()), (7, "Many. ".to_owned())];
    assert_eq!(error_sections(source), expected);
}

#[test]
fn codes() {
    let kind = code_arm("            Self::NotFound => \"LG002\",").unwrap();
    assert_eq!((kind.variant.as_str(), kind.code.as_str()), ("NotFound", "LG002"));
    assert!(code_arm("            Self::NotFound => \"not found\",").is_none());
}

//! JSON of Python.

use serde_json::json;

use super::*;

#[test]
fn numbers_that_only_python_has_are_read_and_nothing_else_is() {
    let text = br#"{"NaN": [NaN, -Infinity, Infinity, -1], "x\"NaN": "\\", "y": "Infinity"}"#;
    let expected = json!({"NaN": [null, null, null, -1], "x\"NaN": "\\", "y": "Infinity"});
    assert_eq!(parse(text), Ok(expected));
    for wrong in ["", "NaN NaN", "{\"a\": NaN", "\"NaN", "\"\\", "nan", "[-NaN]", "\0\0\0"] {
        assert!(parse(wrong.as_bytes()).is_err(), "{wrong:?}");
    }
    assert!(parse("[".repeat(100_000).as_bytes()).is_err());
}

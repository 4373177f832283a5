use serde_json::json;

use super::*;

fn found(count: u64) -> Vec<(String, u64)> {
    vec![("loop".into(), count), ("other".into(), 50)]
}

#[test]
fn what_grew_fails() {
    let expected = json!({"loop": 1000, "other": 50});
    for (count, passes) in [(1000, true), (1020, true), (1021, false), (10, true), (5000, false)] {
        assert_eq!(judge(&found(count), &expected, 2), passes, "{count}");
    }
    assert!(judge(&found(1150), &expected, 15) && !judge(&found(1151), &expected, 15));
}

#[test]
fn what_is_not_known_fails() {
    assert!(!judge(&found(1000), &json!({"loop": 1000}), 2));
    assert!(!judge(&found(1000), &Value::Null, 2));
}

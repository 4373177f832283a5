use super::*;

fn whole(values: &[(&str, &[f32])]) -> Whole {
    let tensor = |values: &[f32]| Tensor {
        dtype: Dtype::F32,
        shape: vec![values.len() as u64],
        bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    let named = values.iter();
    named.map(|(name, values)| (("model".into(), (*name).into()), tensor(values))).collect()
}

#[test]
fn the_first_differing_element_is_named() {
    let one = whole(&[("a", &[1.0, 2.0]), ("b", &[3.0, 4.0])]);
    assert_eq!(first_difference(&one, &one), None);
    let other = whole(&[("a", &[1.0, 2.0]), ("b", &[3.0, 4.5])]);
    let difference = first_difference(&one, &other).unwrap();
    assert_eq!(difference.tensor, "model/b");
    assert_eq!(difference.what, "element 1 is 4 and 4.5");
}

#[test]
fn a_missing_tensor_and_another_shape_are_differences() {
    let one = whole(&[("a", &[1.0, 2.0])]);
    let difference = |other| first_difference(&one, &other).unwrap().what;
    assert_eq!(difference(whole(&[])), "only the first has it");
    assert_eq!(difference(whole(&[("a", &[1.0])])), "F32 [2] and F32 [1]");
    let more = whole(&[("a", &[1.0, 2.0]), ("b", &[])]);
    assert_eq!(difference(more), "only the second has it");
}

#[test]
fn zeros_of_either_sign_are_different_bytes() {
    let difference = first_difference(&whole(&[("a", &[0.0])]), &whole(&[("a", &[-0.0])]));
    assert_eq!(difference.unwrap().what, "element 0 is 0 and -0");
}

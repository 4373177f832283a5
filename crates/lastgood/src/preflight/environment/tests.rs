use super::*;

fn of(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

#[test]
fn the_longest_name_decides() {
    assert_eq!(effect_of("cpu.model"), Effect::Numerics);
    assert_eq!(effect_of("cpu.count"), Effect::Information);
    assert_eq!(effect_of("package.torch"), Effect::Numerics);
    assert_eq!(effect_of("package.torch.major"), Effect::Safety);
    assert_eq!(effect_of("package.lastgood"), Effect::Information);
    assert_eq!(effect_of("code.lock.uv.lock"), Effect::Information);
    assert_eq!(effect_of("something.new"), Effect::Numerics);
}

#[test]
fn what_is_not_imported_is_no_difference_and_an_unset_variable_is() {
    let a = of(&[("package.jax", "0.9"), ("env.OMP_NUM_THREADS", "2"), ("libc", "2.36")]);
    let b = of(&[("libc", "2.37")]);
    let found: Vec<_> = differences(&a, &b).into_iter().map(|f| (f.key, f.effect)).collect();
    let expected = [
        ("env.OMP_NUM_THREADS".to_owned(), Effect::Numerics),
        ("libc".to_owned(), Effect::Numerics),
        ("package.jax".to_owned(), Effect::Information),
    ];
    assert_eq!(found, expected);
    assert!(differences(&a, &a).is_empty());
}

#[test]
fn equal_environments_have_equal_digests_and_no_others() {
    let a = of(&[("libc", "2.36")]);
    assert_eq!(digest(&a).unwrap(), digest(&a.clone()).unwrap());
    assert_ne!(digest(&a).unwrap(), digest(&of(&[("libc", "2.37")])).unwrap());
}

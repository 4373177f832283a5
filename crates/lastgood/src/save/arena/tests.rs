use super::*;

/// A plan that uses so many bytes of each segment.
fn plan(segments: &[usize]) -> Plan {
    Plan { segments: segments.into(), ..Plan::default() }
}

fn held(arena: &Arena) -> usize {
    arena.places.iter().map(Place::len).sum()
}

#[test]
fn memory_is_kept_and_never_more_than_the_bound() {
    let mut arena = Arena::new(100, None);
    let plans: [&[usize]; 7] =
        [&[60, 40], &[60, 30], &[40, 60], &[10, 10, 80], &[100], &[1; 100], &[50, 50]];
    for segments in plans {
        arena.reserve(&plan(segments)).unwrap();
        assert!(held(&arena) <= 100, "{} bytes for {segments:?}", held(&arena));
        let fits = |(place, used): (&Place, &usize)| place.len() >= *used;
        assert!(arena.places.iter().zip(segments).all(fits), "{segments:?}");
    }
    // What is large enough is not allocated again.
    let before: Vec<_> = arena.places.iter().map(|place| place.block.bytes().as_ptr()).collect();
    arena.reserve(&plan(&[50, 50])).unwrap();
    arena.reserve(&plan(&[49, 48])).unwrap();
    let after: Vec<_> = arena.places.iter().map(|place| place.block.bytes().as_ptr()).collect();
    assert_eq!(before, after);
    assert_eq!(arena.reserve(&plan(&[51, 50])).unwrap_err().kind(), ErrorKind::Overloaded);
}

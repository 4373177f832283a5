use std::io::{Read, Write};
use std::sync::Barrier;

use super::*;

/// Longer than any honest wait here, so that an error within it was not the timeout's.
const TIMEOUT: Duration = Duration::from_secs(10);

fn rendezvous(port: u16, rank: u32, world_size: u32) -> Rendezvous {
    Rendezvous {
        address: "127.0.0.1".into(),
        port,
        token: "run".into(),
        attempt: 3,
        rank,
        world_size,
        timeout: TIMEOUT,
    }
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Runs `act` on every rank of a world, each on its own thread and over real connections.
pub(crate) fn in_world<T: Send>(
    world_size: u32,
    timeout: Duration,
    act: impl Fn(u32, Collective) -> T + Sync,
) -> Vec<T> {
    let (listener, port) = listener();
    let rendezvous = |rank| Rendezvous { timeout, ..rendezvous(port, rank, world_size) };
    thread::scope(|scope| {
        let (listener, rendezvous, act) = (&listener, &rendezvous, &act);
        let ranks = (0..world_size).map(|rank| {
            scope.spawn(move || {
                let collective = match rank {
                    0 => Collective::host(listener, &rendezvous(0)),
                    _ => Collective::join(&rendezvous(rank)),
                };
                act(rank, collective.unwrap())
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Half of `0 .. length` for each of two ranks.
fn halves(length: usize) -> Shares {
    Shares::new(2, |rank| vec![super::super::shares::part(length, rank as usize, 2)])
}

#[test]
fn sums_add_in_the_order_of_logical_ranks() {
    // In any other order the small numbers are lost, or survive, beside the large ones.
    let vectors = [[1e8, 1.0], [1.0, 1e8], [-1e8, 1.0], [1.0, -1e8]].map(|v| v.to_vec());
    let expected = vectors.iter().fold([0.0; 2], |sum, v| [sum[0] + v[0], sum[1] + v[1]]);
    for world_size in [1, 2, 4] {
        let shares = Shares::new(world_size, |_| vec![0..1, 1..2]);
        let per_rank = vectors.len() / world_size as usize;
        for _ in 0..5 {
            let sums = in_world(world_size, TIMEOUT, |rank, mut collective| {
                // The last rank comes first: the order of arrival must not matter.
                thread::sleep(Duration::from_millis(u64::from(10 * (world_size - rank))));
                let own = &vectors[rank as usize * per_rank..][..per_rank];
                collective.reduce(own, &shares).unwrap()
            });
            assert!(sums.iter().all(|sum| *sum == expected), "{world_size} ranks: {sums:?}");
        }
    }
}

#[test]
fn each_rank_gets_its_share_of_a_sum() {
    let shares = halves(5).with_common(5..6);
    let sums = in_world(2, TIMEOUT, |rank, mut collective| {
        let own: Vec<f32> = (0..6).map(|i| (i + 10 * rank) as f32).collect();
        collective.reduce(&[own], &shares).unwrap()
    });
    assert_eq!(sums, [vec![10.0, 12.0, 20.0], vec![14.0, 16.0, 18.0, 20.0]]);
}

#[test]
fn shared_shares_make_a_whole_everywhere() {
    let wholes = in_world(2, TIMEOUT, |rank, mut collective| {
        let mut flat = vec![f32::NAN; 5];
        for index in halves(5).of(rank)[0].clone() {
            flat[index] = index as f32;
        }
        collective.share(&mut flat, &halves(5)).unwrap();
        flat
    });
    assert_eq!(wholes, vec![vec![0.0, 1.0, 2.0, 3.0, 4.0]; 2]);
}

#[test]
fn bytes_are_gathered_in_order() {
    let found = in_world(3, TIMEOUT, |rank, mut collective| {
        let said = format!("<{rank}>").into_bytes();
        collective.gather(said).unwrap()
    });
    assert_eq!(found, vec![b"<0><1><2>".to_vec(); 3]);
}

#[test]
fn an_operation_ends_when_the_last_rank_has_come() {
    let started = Instant::now();
    let passed = in_world(3, TIMEOUT, |rank, mut collective| {
        thread::sleep(Duration::from_millis(u64::from(100 * rank)));
        meet(&mut collective).unwrap();
        started.elapsed()
    });
    assert!(passed.iter().all(|at| *at >= Duration::from_millis(200)), "{passed:?}");
}

/// The smallest operation: it ends when every rank has come to it.
fn meet(collective: &mut Collective) -> Result<()> {
    collective.gather(Vec::new()).map(drop)
}

/// What each rank sees when rank `dead` leaves while the others begin an operation.
fn errors_when_dead(dead: u32) -> Vec<(Option<CollectiveError>, Duration)> {
    in_world(4, TIMEOUT, |rank, mut collective| {
        meet(&mut collective).unwrap();
        if rank == dead {
            return (None, Duration::ZERO);
        }
        let started = Instant::now();
        let error = loop {
            // Rank 0 dies unseen by those whose last message it has already answered.
            match meet(&mut collective) {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(meet(&mut collective), Err(error.clone()), "an error must stay");
        (Some(error), started.elapsed())
    })
}

#[test]
fn a_dead_rank_is_named_everywhere_at_once() {
    for dead in 0..4 {
        for (rank, (error, waited)) in errors_when_dead(dead).into_iter().enumerate() {
            if rank as u32 == dead {
                continue;
            }
            let error = error.unwrap();
            assert!(
                matches!(error, CollectiveError::PeerLost { rank, .. } if rank == dead),
                "rank {rank} saw {error:?} when rank {dead} died"
            );
            assert!(waited < TIMEOUT / 5, "rank {rank} waited {waited:?} for rank {dead}");
        }
    }
}

#[test]
fn a_rank_that_hangs_is_named_within_the_timeout() {
    let timeout = Duration::from_millis(300);
    for hanging in [0, 2] {
        let done = Barrier::new(3);
        let found = in_world(3, timeout, |rank, mut collective| {
            let started = Instant::now();
            let error = (rank != hanging).then(|| meet(&mut collective).unwrap_err());
            let waited = started.elapsed();
            done.wait();
            (error, waited)
        });
        for (error, waited) in found {
            let Some(error) = error else { continue };
            assert_eq!(error.rank(), Some(hanging), "{error}");
            // The kernel's timer may be early by less than a tick; a busy machine is late.
            let tick = Duration::from_millis(10);
            assert!(waited + tick >= timeout && waited < 20 * timeout, "{waited:?}");
        }
    }
}

#[test]
fn ranks_that_do_different_things_notice() {
    let errors = in_world(2, TIMEOUT, |rank, mut collective| match rank {
        0 => meet(&mut collective).unwrap_err(),
        _ => collective.share(&mut [0.0; 3], &halves(3)).unwrap_err(),
    });
    assert!(matches!(errors[0], CollectiveError::Protocol { rank: 1, .. }), "{errors:?}");
    // Whoever is out of step is not told why: rank 0 hangs up.
    assert!(matches!(errors[1], CollectiveError::PeerLost { rank: 0, .. }), "{errors:?}");

    let errors = in_world(2, TIMEOUT, |rank, mut collective| {
        let vector = vec![0.0; 3 + rank as usize];
        collective.reduce(&[vector], &halves(3)).unwrap_err()
    });
    assert!(matches!(errors[0], CollectiveError::Protocol { rank: 1, .. }), "{errors:?}");
}

#[test]
fn whoever_does_not_belong_is_refused_and_the_others_meet() {
    let (listener, port) = listener();
    thread::scope(|scope| {
        let host = scope.spawn(|| Collective::host(&listener, &rendezvous(port, 0, 2)));
        // Other programs: one that says nothing, one that speaks otherwise, one that promises much.
        let silent = TcpStream::connect(("127.0.0.1", port)).unwrap();
        for greeting in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), b"\xff\xff\xff\xfflgd\0".repeat(2)] {
            let mut stranger = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stranger.write_all(&greeting).unwrap();
            stranger.read_to_end(&mut Vec::new()).ok();
        }
        let right = rendezvous(port, 1, 2);
        let refused = |wrong: Rendezvous| match Collective::join(&wrong) {
            Err(CollectiveError::Refused { reason, .. }) => reason,
            other => panic!("{wrong:?} got {other:?}"),
        };
        refused(Rendezvous { token: "another run".into(), ..right.clone() });
        refused(Rendezvous { world_size: 3, ..right.clone() });
        refused(Rendezvous { rank: 2, ..right.clone() });
        let zombie = Collective::join(&Rendezvous { attempt: 2, ..right.clone() });
        assert_eq!(zombie.err(), Some(CollectiveError::Superseded { attempt: 2, newest: 3 }));

        let mut joined = Collective::join(&right).unwrap();
        let mut host = host.join().unwrap().unwrap();
        let barrier = scope.spawn(move || meet(&mut host));
        assert_eq!(meet(&mut joined), Ok(()));
        assert_eq!(barrier.join().unwrap(), Ok(()));
        drop(silent);
    });
}

#[test]
fn a_rank_0_of_an_older_attempt_learns_that_it_is_over() {
    let (listener, port) = listener();
    thread::scope(|scope| {
        let zombie = scope.spawn(|| {
            let old = Rendezvous { attempt: 2, ..rendezvous(port, 0, 2) };
            Collective::host(&listener, &old).err()
        });
        let newer = scope.spawn(|| Collective::join(&rendezvous(port, 1, 2)));
        let expected = CollectiveError::Superseded { attempt: 2, newest: 3 };
        assert_eq!(zombie.join().unwrap(), Some(expected));
        // The newer rank keeps looking for its own rank 0, and finds it on the same port.
        let host = scope.spawn(|| Collective::host(&listener, &rendezvous(port, 0, 2)));
        assert!(host.join().unwrap().is_ok() && newer.join().unwrap().is_ok());
    });
}

#[test]
fn ranks_that_never_come_are_named_to_those_that_did() {
    let (listener, port) = listener();
    let timeout = Duration::from_millis(300);
    let rendezvous = |rank| Rendezvous { timeout, ..rendezvous(port, rank, 3) };
    thread::scope(|scope| {
        let host = scope.spawn(|| Collective::host(&listener, &rendezvous(0)).err());
        let joined = scope.spawn(|| Collective::join(&rendezvous(1)).err());
        let expected = CollectiveError::NeverJoined { ranks: vec![2], waited: timeout };
        assert_eq!(host.join().unwrap(), Some(expected));
        assert_eq!(joined.join().unwrap().and_then(|error| error.rank()), Some(2));
    });
}

#[test]
fn without_rank_0_joining_ends_in_time() {
    let (listener, port) = listener();
    drop(listener);
    let timeout = Duration::from_millis(200);
    let started = Instant::now();
    let error = Collective::join(&Rendezvous { timeout, ..rendezvous(port, 1, 2) }).err();
    assert!(matches!(error, Some(CollectiveError::Unreachable { .. })), "{error:?}");
    assert!(started.elapsed() < 5 * timeout);
}

#[test]
fn damaged_frames_are_errors() {
    let mut whole = Vec::new();
    frame::write(&mut whole, Kind::Gather, 7, b"payload").unwrap();
    let read = |bytes: &[u8], bytes_max| frame::read(&mut &bytes[..], bytes_max);
    let frame = read(&whole, 7).unwrap();
    assert_eq!(
        (frame.kind, frame.sequence, &frame.payload[..]),
        (Kind::Gather, 7, &b"payload"[..])
    );

    for length in 0..whole.len() {
        assert!(read(&whole[..length], 7).is_err(), "cut after {length} bytes");
    }
    assert!(read(&whole, 6).is_err(), "longer than allowed");
    for index in 4..8 {
        let mut damaged = whole.clone();
        damaged[index] ^= 0x80;
        assert!(read(&damaged, 7).is_err(), "byte {index}");
    }
}

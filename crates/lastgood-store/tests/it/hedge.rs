//! Second requests: who is answered, with what, and how many there are.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use lastgood_store::{
    Env, Error, ErrorKind, HedgePolicy, HedgedStore, Hedges, ObjectMeta, Payload, Put, Result,
    RetryStore, Store,
};
use tokio::time::{Instant, sleep};

/// What is really stored is this byte, everywhere.
const RIGHT: u8 = 7;
const GARBAGE: u8 = 0xee;
const BYTES: usize = 1 << 16;
const USUAL: Duration = Duration::from_millis(20);
const NEVER: Duration = Duration::from_secs(1 << 30);

/// The clock of tokio, which stands still until everybody waits.
#[derive(Debug)]
struct Paused(Instant);

#[async_trait]
impl Env for Paused {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.elapsed()
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn random(&self) -> u64 {
        0
    }

    async fn sleep(&self, duration: Duration) {
        sleep(duration).await;
    }
}

/// How one request goes.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// The right bytes after so long.
    After(Duration),
    /// Some garbage at once, and garbage everywhere after so long.
    Garbage(Duration),
    /// An error after so long.
    Fails(ErrorKind, Duration),
    /// Too few bytes, after so long.
    Short(Duration),
}

/// A store whose requests go as a test says, by their number; all others take the usual time.
#[derive(Clone, Debug, Default)]
struct Slow {
    ways: Arc<Mutex<BTreeMap<usize, Way>>>,
    /// How the others go.
    others: Arc<Mutex<Option<Way>>>,
    asked: Arc<AtomicUsize>,
    puts: Arc<AtomicUsize>,
    /// Requests under way.
    open: Arc<AtomicUsize>,
}

/// A request that is under way until it is dropped.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Slow {
    fn next(&self) -> (Way, Open) {
        let number = self.asked.fetch_add(1, Ordering::SeqCst);
        self.open.fetch_add(1, Ordering::SeqCst);
        let others = self.others.lock().unwrap().unwrap_or(Way::After(USUAL));
        let way = self.ways.lock().unwrap().get(&number).copied().unwrap_or(others);
        (way, Open(Arc::clone(&self.open)))
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// The next request but `skip` goes this way.
    fn plan(&self, skip: usize, way: Way) {
        self.ways.lock().unwrap().insert(self.asked() + skip, way);
    }
}

#[async_trait]
impl Store for Slow {
    fn location(&self) -> String {
        "slow:".into()
    }

    async fn put_if_absent(&self, _: &str, _: Payload) -> Result<Put> {
        self.puts.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_secs(3600)).await;
        Ok(Put::Created)
    }

    async fn get(&self, key: &str, _: u64) -> Result<Bytes> {
        self.get_range(key, 0..BYTES as u64).await
    }

    async fn get_range(&self, _: &str, range: Range<u64>) -> Result<Bytes> {
        let (way, _open) = self.next();
        let bytes = (range.end - range.start) as usize;
        let (after, bytes, value) = match way {
            Way::After(after) => (after, bytes, RIGHT),
            Way::Garbage(after) => (after, bytes, GARBAGE),
            Way::Short(after) => (after, bytes / 2, RIGHT),
            Way::Fails(kind, after) => {
                sleep(after).await;
                return Err(Error::new(kind, "planted"));
            }
        };
        sleep(after).await;
        Ok(vec![value; bytes].into())
    }

    async fn read_into(&self, key: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        let way = self.ways.lock().unwrap().get(&self.asked()).copied();
        if let Some(Way::Garbage(after)) = way {
            let (_, _open) = self.next();
            let half = target.len() / 2;
            target[..half].fill(GARBAGE);
            sleep(after).await;
            target.fill(GARBAGE);
            return Ok(());
        }
        let bytes = self.get_range(key, offset..offset + target.len() as u64).await?;
        target.copy_from_slice(&bytes);
        Ok(())
    }

    async fn size(&self, _: &str) -> Result<Option<u64>> {
        Ok(Some(BYTES as u64))
    }

    async fn list(&self, _: &str, _: Option<&str>) -> Result<Vec<ObjectMeta>> {
        Ok(Vec::new())
    }

    async fn delete(&self, _: &str) -> Result<()> {
        Ok(())
    }
}

fn paused<T>(work: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().unwrap().block_on(work)
}

/// A store of which enough is known, and what is below it.
async fn known(policy: HedgePolicy) -> (Slow, HedgedStore<Slow>) {
    let slow = Slow::default();
    let env = Arc::new(Paused(Instant::now()));
    let store = HedgedStore::with_policy(slow.clone(), env, policy);
    for _ in 0..policy.known_min {
        assert_eq!(read(&store).await.unwrap(), vec![RIGHT; BYTES]);
    }
    assert_eq!(store.hedges(), Hedges::default());
    (slow, store)
}

async fn read(store: &dyn Store) -> Result<Vec<u8>> {
    let mut target = vec![0; BYTES];
    store.read_into("key", 0, &mut target).await.map(|()| target)
}

/// How long it takes.
async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let begin = Instant::now();
    let done = work.await;
    (done, begin.elapsed())
}

#[test]
fn a_read_that_hangs_is_answered_by_a_second_one() {
    paused(async {
        let policy = HedgePolicy::default();
        let (slow, store) = known(policy).await;
        slow.plan(0, Way::After(NEVER));
        let (found, took) = timed(read(&store)).await;
        assert_eq!(found.unwrap(), vec![RIGHT; BYTES]);
        assert_eq!(took, USUAL * policy.multiple + USUAL);
        assert_eq!(store.hedges(), Hedges { asked: 1, won: 1 });
        assert_eq!(slow.open.load(Ordering::SeqCst), 0, "the first request is gone");
    });
}

#[test]
fn whole_objects_and_ranges_are_hedged_as_well() {
    paused(async {
        let (slow, store) =
            known(HedgePolicy { burst: 9, percent: 100, ..HedgePolicy::default() }).await;
        for _ in 0..8 {
            store.get("key", u64::MAX).await.unwrap();
        }
        slow.plan(0, Way::After(NEVER));
        assert_eq!(store.get("key", u64::MAX).await.unwrap(), vec![RIGHT; BYTES]);
        slow.plan(0, Way::After(NEVER));
        assert_eq!(store.get_range("key", 3..3 + BYTES as u64).await.unwrap(), vec![RIGHT; BYTES]);
        assert_eq!(store.hedges(), Hedges { asked: 2, won: 2 });
    });
}

/// The first request has written into the target before, and would write again long after the call.
#[test]
fn garbage_of_the_loser_never_reaches_the_target() {
    paused(async {
        let (slow, store) = known(HedgePolicy::default()).await;
        slow.plan(0, Way::Garbage(Duration::from_secs(5)));
        let mut target = vec![0; BYTES];
        store.read_into("key", 0, &mut target).await.unwrap();
        assert_eq!(store.hedges().won, 1);
        assert_eq!(target, vec![RIGHT; BYTES]);
        assert_eq!(slow.open.load(Ordering::SeqCst), 0, "nobody is left who could write");
        sleep(Duration::from_secs(60)).await;
        assert_eq!(target, vec![RIGHT; BYTES]);
    });
}

#[test]
fn a_second_request_that_is_slower_brings_nothing() {
    paused(async {
        let (slow, store) = known(HedgePolicy::default()).await;
        slow.plan(0, Way::After(USUAL * 5));
        slow.plan(1, Way::Garbage(Duration::from_secs(5)));
        assert_eq!(read(&store).await.unwrap(), vec![RIGHT; BYTES]);
        assert_eq!(store.hedges(), Hedges { asked: 1, won: 0 });
        sleep(Duration::from_secs(60)).await;
        assert_eq!(slow.open.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn an_answer_of_the_wrong_length_is_damage() {
    paused(async {
        let (slow, store) = known(HedgePolicy::default()).await;
        slow.plan(0, Way::After(NEVER));
        slow.plan(1, Way::Short(USUAL));
        assert_eq!(read(&store).await.unwrap_err().kind(), ErrorKind::Corrupt);
    });
}

/// What may pass leaves the other request; what will not is the answer.
#[test]
fn of_two_requests_one_may_fail() {
    let second = USUAL * 4;
    paused(async {
        for (kind, first_fails_after, expected) in [
            (ErrorKind::Unavailable, second + USUAL / 2, None),
            (ErrorKind::Overloaded, second + USUAL / 2, None),
            (ErrorKind::NotFound, second + USUAL / 2, Some(ErrorKind::NotFound)),
            (ErrorKind::Denied, second + USUAL / 2, Some(ErrorKind::Denied)),
        ] {
            let (slow, store) = known(HedgePolicy::default()).await;
            slow.plan(0, Way::Fails(kind, first_fails_after));
            assert_eq!(read(&store).await.err().map(|e| e.kind()), expected, "first: {kind:?}");
            let (slow, store) = known(HedgePolicy::default()).await;
            slow.plan(0, Way::After(second + USUAL));
            slow.plan(1, Way::Fails(kind, USUAL / 2));
            assert_eq!(read(&store).await.err().map(|e| e.kind()), expected, "second: {kind:?}");
        }
        let (slow, store) = known(HedgePolicy::default()).await;
        slow.plan(0, Way::Fails(ErrorKind::Unavailable, second + USUAL));
        slow.plan(1, Way::Fails(ErrorKind::Unavailable, USUAL));
        assert_eq!(read(&store).await.unwrap_err().kind(), ErrorKind::Unavailable);
    });
}

/// A store that becomes slow for everything is asked for little more than before, however many wait for it.
#[test]
fn a_slow_store_is_not_stormed() {
    paused(async {
        let policy = HedgePolicy::default();
        let (slow, store) = known(policy).await;
        for _ in 0..1000 {
            read(&store).await.unwrap();
        }
        let before = slow.asked();
        *slow.others.lock().unwrap() = Some(Way::After(USUAL * 50));
        let store = Arc::new(store);
        let mut readers = Vec::new();
        for _ in 0..40 {
            let store = Arc::clone(&store);
            readers.push(tokio::spawn(async move {
                for _ in 0..50 {
                    read(store.as_ref()).await.unwrap();
                }
            }));
        }
        for reader in readers {
            reader.await.unwrap();
        }
        let extra = slow.asked() - before - 40 * 50;
        assert_eq!(extra as u64, store.hedges().asked);
        let most = policy.burst as usize + 40 * 50 * policy.percent as usize / 100;
        assert!(extra <= most, "{extra} second requests, at most {most}");
        assert!(extra <= 10, "{extra}: what all reads take is no reason to ask again");
    });
}

/// Slow reads that come again and again are paid by the others.
#[test]
fn second_requests_are_a_share_of_all() {
    paused(async {
        let policy = HedgePolicy::default();
        let (slow, store) = known(policy).await;
        let reads = 2000;
        for i in 0..reads {
            if i % 5 == 0 {
                slow.plan(0, Way::After(USUAL * 20));
            }
            read(&store).await.unwrap();
        }
        let asked = store.hedges().asked;
        assert!(asked <= reads * u64::from(policy.percent) / 100 + 1, "{asked} of {reads}");
        assert!(asked >= reads * u64::from(policy.percent) / 100 / 2, "{asked} of {reads}");
    });
}

#[test]
fn nothing_is_asked_again_before_enough_is_known() {
    paused(async {
        let slow = Slow::default();
        let store = HedgedStore::new(slow.clone(), Arc::new(Paused(Instant::now())));
        for _ in 0..HedgePolicy::default().known_min {
            slow.plan(0, Way::After(USUAL * 100));
            read(&store).await.unwrap();
        }
        assert_eq!(store.hedges().asked, 0);
        // Reads of another size are known as little.
        slow.plan(0, Way::After(USUAL * 1000));
        store.get_range("key", 0..8).await.unwrap();
        assert_eq!(store.hedges().asked, 0);
    });
}

#[test]
fn puts_are_never_made_twice() {
    paused(async {
        let (slow, store) = known(HedgePolicy::default()).await;
        store.put_if_absent("key", "bytes".into()).await.unwrap();
        assert_eq!(slow.puts.load(Ordering::SeqCst), 1);
        assert_eq!(store.hedges().asked, 0);
    });
}

/// Both requests of a read may fail: then it is tried again, as often as any other.
#[test]
fn hedged_reads_are_tried_again() {
    paused(async {
        let (slow, store) = known(HedgePolicy::default()).await;
        let store = RetryStore::new(store, Arc::new(Paused(Instant::now())));
        slow.plan(0, Way::Fails(ErrorKind::Unavailable, USUAL * 5));
        slow.plan(1, Way::Fails(ErrorKind::Unavailable, USUAL * 5));
        assert_eq!(read(&store).await.unwrap(), vec![RIGHT; BYTES]);
        assert_eq!(store.hedges().asked, 1);
    });
}

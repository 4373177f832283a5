//! A clock that stands still until somebody sleeps.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use lastgood_store::Env;

/// Time passes by sleeping alone, and randomness is what the test says.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    sleeps: Mutex<Vec<Duration>>,
    random: Mutex<u64>,
}

impl Clock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn set_random(&self, random: u64) {
        *self.random.lock().unwrap() = random;
    }

    pub(crate) fn sleeps(&self) -> Vec<Duration> {
        self.sleeps.lock().unwrap().clone()
    }
}

#[async_trait]
impl Env for Clock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.elapsed()
    }

    fn elapsed(&self) -> Duration {
        self.sleeps().iter().sum()
    }

    fn random(&self) -> u64 {
        *self.random.lock().unwrap()
    }

    async fn sleep(&self, duration: Duration) {
        self.sleeps.lock().unwrap().push(duration);
    }
}

/// Runs a future that waits for nothing but this process.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(future)
}

//! The clock and randomness.

use std::fmt;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

/// Where deciding code takes time and randomness from.
#[async_trait]
pub trait Env: fmt::Debug + Send + Sync + 'static {
    /// The wall clock. Information only: nothing is decided by it.
    fn now(&self) -> SystemTime;

    /// The time since some fixed moment; never goes back.
    fn elapsed(&self) -> Duration;

    /// 64 random bits.
    fn random(&self) -> u64;

    /// Sleeps for about `duration`.
    async fn sleep(&self, duration: Duration);
}

/// The real clock and the operating system's randomness; needs a tokio runtime with timers to sleep.
#[derive(Debug)]
pub struct SystemEnv {
    start: std::time::Instant,
}

impl Default for SystemEnv {
    fn default() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

#[async_trait]
impl Env for SystemEnv {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn random(&self) -> u64 {
        // Without entropy a process cannot make write ids that nobody else makes; stopping is the
        // only safe answer.
        #[expect(clippy::expect_used, reason = "no safe way to go on without entropy")]
        getrandom::u64().expect("the operating system gives no randomness")
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

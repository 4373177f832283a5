//! The long-running processes of lastgood. So far the supervisor: [`supervise()`] starts the ranks of a
//! job and recovers it, and [`rank`] is what such a rank learns from it.

pub mod rank;
pub mod supervise;

pub use rank::Rank;
pub use supervise::{Control, Event, Job, Outcome, supervise};

//! Exit codes: stable, so that scripts can act on them.

use lastgood::{Error, ErrorKind};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: it did what was asked.
    Done,
    /// 1: it failed for a reason of its own.
    Failed,
    /// 2: the arguments are wrong.
    Usage,
    /// 3: stored bytes are damaged.
    Damage,
    /// 4: what was asked for does not exist.
    NotFound,
    /// 5: refused: fenced, in conflict, incompatible or denied.
    Refused,
    /// 6: two executions differ.
    Diverged,
    /// 7: the store does not answer or has no room.
    Unavailable,
    /// 75: a job gave way to a notice that it will be ended, and can be started again.
    Preempted = lastgood_serve::supervise::PREEMPTED as isize,
}

/// The exit code of an error.
pub(crate) fn code_of(error: &anyhow::Error) -> Exit {
    error.downcast_ref::<Error>().map_or(Exit::Failed, code_of_known)
}

fn code_of_known(error: &Error) -> Exit {
    match error.kind() {
        ErrorKind::Invalid => Exit::Usage,
        ErrorKind::Corrupt => Exit::Damage,
        ErrorKind::NotFound => Exit::NotFound,
        ErrorKind::Fenced | ErrorKind::Conflict | ErrorKind::Incompatible | ErrorKind::Denied => {
            Exit::Refused
        }
        ErrorKind::Diverged => Exit::Diverged,
        ErrorKind::Unavailable | ErrorKind::Overloaded => Exit::Unavailable,
        _ => Exit::Failed,
    }
}

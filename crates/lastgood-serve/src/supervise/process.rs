//! One rank process, and what it prints.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, SyncSender, channel};
use std::thread;
use std::time::Duration;

use lastgood::{Error, ErrorKind, Result};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, getppid, kill_process_group,
    set_parent_process_death_signal, waitid,
};

use super::{Cause, Stream};

/// A line of more bytes is cut.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// How long the end of a rank is kept back for its last lines, so that they come before it. What the rank
/// has started may hold its output open for longer.
const LAST_LINES: Duration = Duration::from_millis(200);

/// What the threads beside a process tell.
#[derive(Debug)]
pub(super) enum Message {
    Line {
        rank: u32,
        stream: Stream,
        text: Vec<u8>,
    },
    /// The process has ended and is still to be reaped, so that its number means nobody else.
    Ended {
        rank: u32,
        clean: bool,
    },
}

/// A rank, at the head of a process group of its own.
#[derive(Debug)]
pub(super) struct RankProcess {
    child: Child,
    pid: Option<Pid>,
    killed: bool,
    reaped: bool,
}

impl RankProcess {
    /// Starts `command` as `rank`. Its lines and its end come to `messages`.
    pub(super) fn start(
        mut command: Command,
        rank: u32,
        messages: &SyncSender<Message>,
    ) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let program = command.get_program().to_owned();
        let mut child = command.spawn().map_err(|error| cannot_start(&program, &error))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let this = Self { child, pid, killed: false, reaped: false };
        // Nobody sends: that the last sender is gone tells that the output is closed.
        let (open, closed) = channel();
        if let Some(out) = out {
            listen(&format!("rank {rank} out"), out, (rank, Stream::Out), messages, open.clone())?;
        }
        if let Some(err) = err {
            listen(&format!("rank {rank} err"), err, (rank, Stream::Err), messages, open)?;
        }
        if let Some(pid) = pid {
            let messages = messages.clone();
            spawn(&format!("rank {rank} end"), move || {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                let ended = loop {
                    match waitid(WaitId::Pid(pid), options) {
                        Err(rustix::io::Errno::INTR) => {}
                        ended => break ended.ok().flatten(),
                    }
                };
                closed.recv_timeout(LAST_LINES).ok();
                let clean = ended.is_some_and(|status| status.exit_status() == Some(0));
                // Nobody listens any more when the attempt was left after an error.
                messages.send(Message::Ended { rank, clean }).ok();
            })?;
        }
        Ok(this)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn is_running(&self) -> bool {
        !self.reaped
    }

    /// Asks the rank and its children to end.
    pub(super) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends the rank and its children.
    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// As [`Self::kill`], remembered as done on purpose.
    pub(super) fn inject_kill(&mut self) {
        if !self.reaped {
            self.killed = true;
            self.kill();
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid.filter(|_| !self.reaped) {
            // It may have ended meanwhile, which is all that is wanted.
            kill_process_group(pid, signal).ok();
        }
    }

    /// How the rank has ended; waits until it has.
    pub(super) fn reap(&mut self) -> Result<Cause> {
        let status =
            self.child.wait().map_err(|error| Error::internal(format!("wait: {error}")))?;
        self.reaped = true;
        Ok(match (status.code(), status.signal()) {
            (None, Some(9)) if self.killed => Cause::Injected,
            (None, Some(signal)) => Cause::Signal(signal),
            (code, _) => Cause::Exit(code.unwrap_or(-1)),
        })
    }
}

impl Drop for RankProcess {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            self.child.wait().ok();
        }
    }
}

fn cannot_start(program: &OsStr, error: &std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("the command cannot be started: {error}"))
        .with_object(program.to_string_lossy())
        .with_remedy("give a program that exists and may be run after `--`")
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map(drop).map_err(|error| Error::unavailable(format!("no thread: {error}")))
}

/// Passes the lines of a rank on until it closes its output.
fn listen(
    name: &str,
    output: impl Read + Send + 'static,
    (rank, stream): (u32, Stream),
    messages: &SyncSender<Message>,
    open: Sender<()>,
) -> Result<()> {
    let messages = messages.clone();
    spawn(name, move || {
        let _open = open;
        let mut output = BufReader::new(output);
        loop {
            let mut text = Vec::new();
            let read = output.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut text);
            if !matches!(read, Ok(1..)) {
                return;
            }
            while matches!(text.last(), Some(b'\n' | b'\r')) {
                text.pop();
            }
            if messages.send(Message::Line { rank, stream, text }).is_err() {
                return;
            }
        }
    })
}

pub(super) fn tie_to_parent(parent: u32) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| Error::internal(format!("prctl(PR_SET_PDEATHSIG): {error}")))?;
    // The parent may have ended before the call: then nobody sends the signal.
    let now = getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
    if now != parent {
        return Err(Error::internal("the supervisor has ended already"));
    }
    Ok(())
}

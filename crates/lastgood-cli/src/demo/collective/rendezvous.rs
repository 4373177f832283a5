//! How the ranks of one attempt find each other, and nobody else.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::frame::{self, Frame, HELLO_BYTES_MAX, Kind, Until};
use super::{CollectiveError as Error, LAST_WORDS_TIMEOUT};

/// Between two looks at a port that nobody listens on, or that nobody has connected to.
const POLL: Duration = Duration::from_millis(5);

/// How long somebody who has connected may take to say who he is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);

/// Where and as whom a rank joins the others.
#[derive(Clone, Debug)]
pub(crate) struct Rendezvous {
    /// The host of rank 0: `MASTER_ADDR`.
    pub(crate) address: String,
    /// The port on which rank 0 listens: `MASTER_PORT`.
    pub(crate) port: u16,
    /// What all ranks must agree on beside the attempt: the run, and the fingerprint of its
    /// configuration. At most 2 KiB. It keeps apart what must not mix; it is no secret.
    pub(crate) token: String,
    /// The attempt. A rank of a lower one never joins, and learns that it is over.
    pub(crate) attempt: u64,
    /// This rank.
    pub(crate) rank: u32,
    /// The number of ranks.
    pub(crate) world_size: u32,
    /// How long the others may take to join, and then to take part in each operation.
    pub(crate) timeout: Duration,
}

impl Rendezvous {
    /// How long this rank waits. Rank 0 gives up first, so that the others hear from it who is
    /// missing instead of guessing that it is rank 0.
    pub(super) fn patience(&self) -> Duration {
        if self.rank == 0 { self.timeout } else { self.timeout + self.timeout / 4 }
    }

    fn hello(&self) -> Hello {
        Hello {
            token: self.token.clone(),
            attempt: self.attempt,
            world_size: self.world_size,
            rank: self.rank,
        }
    }

    fn unreachable(&self, cause: &io::Error) -> Error {
        Error::Unreachable {
            address: self.address.clone(),
            port: self.port,
            cause: cause.to_string(),
        }
    }
}

/// What a rank says when it connects to rank 0.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hello {
    token: String,
    attempt: u64,
    world_size: u32,
    rank: u32,
}

/// Why rank 0 sends somebody away.
#[derive(Debug, Serialize, Deserialize)]
enum Refusal {
    /// Rank 0 belongs to this other attempt.
    Attempt(u64),
    /// He will never fit.
    Mismatch(String),
}

/// Rank 0 ends the attempt because of `rank`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Abort {
    pub(super) rank: u32,
    pub(super) cause: String,
}

/// Listens as rank 0. The port may still be held by a rank 0 that is about to die.
pub(super) fn listen(rendezvous: &Rendezvous) -> Result<TcpListener, Error> {
    let deadline = Instant::now() + rendezvous.patience();
    loop {
        match TcpListener::bind((rendezvous.address.as_str(), rendezvous.port)) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() != io::ErrorKind::AddrInUse || is_past(deadline) => {
                return Err(rendezvous.unreachable(&error));
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// Waits as rank 0 until every other rank has joined; gives their connections in the order of ranks.
pub(super) fn host(
    listener: &TcpListener,
    rendezvous: &Rendezvous,
) -> Result<BTreeMap<u32, TcpStream>, Error> {
    let deadline = Instant::now() + rendezvous.patience();
    listener.set_nonblocking(true).map_err(|error| rendezvous.unreachable(&error))?;
    let mut joined = BTreeMap::new();
    while joined.len() + 1 < rendezvous.world_size as usize {
        match listener.accept() {
            Ok((stream, _)) => admit(stream, rendezvous, &mut joined)?,
            // A connection that broke before it was accepted is as if it had never been.
            Err(_) if !is_past(deadline) => thread::sleep(POLL),
            Err(_) => return Err(nobody(rendezvous, &joined)),
        }
    }
    let deadline = Instant::now() + rendezvous.patience();
    for (rank, stream) in &joined {
        if let Err(error) = frame::write(&mut Until { stream, deadline }, Kind::Welcome, 0, &[]) {
            let error = Error::lost(*rank, Kind::Welcome, &error);
            abort(joined.values(), &error);
            return Err(error);
        }
    }
    Ok(joined)
}

/// Hears who has connected, and keeps the connection if he belongs here.
fn admit(
    stream: TcpStream,
    rendezvous: &Rendezvous,
    joined: &mut BTreeMap<u32, TcpStream>,
) -> Result<(), Error> {
    let deadline = Instant::now() + HELLO_TIMEOUT;
    let hello =
        stream.set_nonblocking(false).and_then(|()| stream.set_nodelay(true)).and_then(|()| {
            frame::read(&mut Until { stream: &stream, deadline }, HELLO_BYTES_MAX)?.json::<Hello>()
        });
    // Whoever does not speak like a rank is none; the connection closes.
    let Ok(hello) = hello else { return Ok(()) };
    let expected = rendezvous.hello();
    let fits = hello.token == expected.token && hello.world_size == expected.world_size;
    let refusal = if !fits {
        Refusal::Mismatch(format!(
            "it belongs to {} of {} ranks, not to {} of {} ranks",
            hello.token, hello.world_size, expected.token, expected.world_size
        ))
    } else if hello.attempt > expected.attempt {
        // The zombie is here.
        let newest = hello.attempt;
        return Err(Error::Superseded { attempt: expected.attempt, newest });
    } else if hello.attempt < expected.attempt {
        Refusal::Attempt(expected.attempt)
    } else if hello.rank == 0 || hello.rank >= expected.world_size {
        Refusal::Mismatch(format!("it is rank {} of {}", hello.rank, expected.world_size))
    } else if let Entry::Vacant(place) = joined.entry(hello.rank) {
        place.insert(stream);
        return Ok(());
    } else {
        Refusal::Mismatch(format!("rank {} has joined already", hello.rank))
    };
    // If the refusal does not arrive, the closed connection says as much.
    let refusal = serde_json::to_vec(&refusal).unwrap_or_default();
    frame::write(&mut Until { stream: &stream, deadline }, Kind::Refusal, 0, &refusal).ok();
    Ok(())
}

/// The error for ranks that never came, which is told to those that did.
fn nobody(rendezvous: &Rendezvous, joined: &BTreeMap<u32, TcpStream>) -> Error {
    let missing: Vec<u32> =
        (1..rendezvous.world_size).filter(|rank| !joined.contains_key(rank)).collect();
    let error = Error::NeverJoined { ranks: missing, waited: rendezvous.timeout };
    abort(joined.values(), &error);
    error
}

/// Tells other ranks why the attempt ends, as far as they still listen.
pub(super) fn abort<'a>(streams: impl Iterator<Item = &'a TcpStream>, error: &Error) {
    let Some(rank) = error.rank() else { return };
    let payload = serde_json::to_vec(&Abort { rank, cause: error.to_string() }).unwrap_or_default();
    for stream in streams {
        let deadline = Instant::now() + LAST_WORDS_TIMEOUT;
        frame::write(&mut Until { stream, deadline }, Kind::Abort, 0, &payload).ok();
    }
}

/// Connects to rank 0 and waits until every rank has joined.
pub(super) fn join(rendezvous: &Rendezvous) -> Result<TcpStream, Error> {
    let deadline = Instant::now() + rendezvous.patience();
    let address = (rendezvous.address.as_str(), rendezvous.port)
        .to_socket_addrs()
        .and_then(|mut found| found.next().ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(|error| rendezvous.unreachable(&error))?;
    loop {
        let answer = connect(address, deadline).and_then(|stream| {
            let answer = greet(&stream, rendezvous, deadline)?;
            Ok((stream, answer))
        });
        let (stream, answer) = match answer {
            Ok(answered) => answered,
            Err(error) if is_past(deadline) => return Err(rendezvous.unreachable(&error)),
            // Rank 0 does not listen yet, or another program does and will be gone.
            Err(_) => {
                thread::sleep(POLL);
                continue;
            }
        };
        if settle(&answer, rendezvous)? {
            return Ok(stream);
        }
        thread::sleep(POLL);
    }
}

fn connect(address: SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
    let left = deadline.saturating_duration_since(Instant::now()).max(POLL);
    let stream = TcpStream::connect_timeout(&address, left)?;
    // A connection to a port of the ephemeral range that nobody listens on can end at itself, and
    // would then keep rank 0 from listening there.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn greet(stream: &TcpStream, rendezvous: &Rendezvous, deadline: Instant) -> io::Result<Frame> {
    let hello = serde_json::to_vec(&rendezvous.hello())?;
    let mut stream = Until { stream, deadline };
    frame::write(&mut stream, Kind::Hello, 0, &hello)?;
    frame::read(&mut stream, HELLO_BYTES_MAX)
}

/// What an answer of rank 0 means: true if this rank has joined, false if it should try again.
fn settle(answer: &Frame, rendezvous: &Rendezvous) -> Result<bool, Error> {
    let unreadable = |error: io::Error| Error::Protocol { rank: 0, what: error.to_string() };
    match answer.kind {
        Kind::Welcome => Ok(true),
        Kind::Refusal => match answer.json().map_err(unreadable)? {
            Refusal::Attempt(newest) if newest > rendezvous.attempt => {
                Err(Error::Superseded { attempt: rendezvous.attempt, newest })
            }
            // The rank 0 of an older attempt is not dead yet.
            Refusal::Attempt(_) => Ok(false),
            Refusal::Mismatch(reason) => Err(Error::Refused { rank: rendezvous.rank, reason }),
        },
        Kind::Abort => {
            let Abort { rank, cause } = answer.json().map_err(unreadable)?;
            Err(Error::PeerLost { rank, during: Kind::Welcome.name(), cause })
        }
        kind => Err(Error::Protocol { rank: 0, what: format!("answers hello by {}", kind.name()) }),
    }
}

fn is_past(deadline: Instant) -> bool {
    Instant::now() >= deadline
}

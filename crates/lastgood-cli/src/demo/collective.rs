//! What ranks do together: a star of TCP connections through rank 0.
//!
//! Rank 0 gathers one message of every rank, combines them in the order of ranks, whatever order they
//! arrive in, and answers each. Three things follow that a checkpoint system leans on. A sum has the
//! same bytes on every run, and on any number of ranks that share the same logical ranks. A rank that
//! dies is an error everywhere at once, and one that hangs within the timeout; no operation waits for
//! ever. And a rank of an older attempt is never let in.

mod frame;
mod rendezvous;

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use std::{io, thread};

use self::frame::{Frame, Kind, PAYLOAD_BYTES_MAX, Until};
use self::rendezvous::Abort;
pub(crate) use self::rendezvous::Rendezvous;
use super::shares::Shares;

/// Why the ranks cannot go on together. Every later operation gives the same error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CollectiveError {
    /// A rank died, hangs, or left: end this process, so that the supervisor starts a new attempt.
    #[error("rank {rank} is lost during {during}: {cause}")]
    PeerLost {
        /// The one that is lost.
        rank: u32,
        /// The operation that noticed it.
        during: &'static str,
        /// What was seen of it.
        cause: String,
    },
    /// Some ranks were not started or cannot reach rank 0: as above.
    #[error("ranks {ranks:?} have not joined within {waited:?}")]
    NeverJoined {
        /// The ones that are missing.
        ranks: Vec<u32>,
        /// For how long.
        waited: Duration,
    },
    /// Rank 0 does not listen, or the address is not one: correct it, or as above.
    #[error("cannot meet at {address}:{port}: {cause}")]
    Unreachable {
        /// The host of rank 0.
        address: String,
        /// Its port.
        port: u16,
        /// What the operating system says.
        cause: String,
    },
    /// A newer attempt has begun: end this process and do not come back.
    #[error("attempt {attempt} is over: attempt {newest} has begun")]
    Superseded {
        /// The one of this rank.
        attempt: u64,
        /// The one that was met.
        newest: u64,
    },
    /// This process does not belong to the others: correct how it is started.
    #[error("rank {rank} may not join: {reason}")]
    Refused {
        /// This rank.
        rank: u32,
        /// What does not fit.
        reason: String,
    },
    /// The ranks do different things, which is a bug in what they run.
    #[error("rank {rank} is out of step: {what}")]
    Protocol {
        /// The one that did not do as expected.
        rank: u32,
        /// What it did.
        what: String,
    },
}

impl CollectiveError {
    /// The rank because of which the others cannot go on.
    pub(crate) fn rank(&self) -> Option<u32> {
        match self {
            Self::PeerLost { rank, .. } | Self::Protocol { rank, .. } => Some(*rank),
            Self::NeverJoined { ranks, .. } => ranks.first().copied(),
            Self::Unreachable { .. } | Self::Superseded { .. } | Self::Refused { .. } => None,
        }
    }

    fn lost(rank: u32, during: Kind, cause: &io::Error) -> Self {
        let cause = match cause.kind() {
            io::ErrorKind::UnexpectedEof => "its connection is closed".into(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it does not read".into(),
            _ => cause.to_string(),
        };
        Self::PeerLost { rank, during: during.name(), cause }
    }
}

/// How long last words may take to be said, and to be heard.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(200);

type Result<T> = std::result::Result<T, CollectiveError>;

/// This rank's connection to the others.
///
/// All ranks call the same operations in the same order.
#[derive(Debug)]
pub(crate) struct Collective {
    rank: u32,
    world_size: u32,
    /// On rank 0 every other rank in order; elsewhere rank 0.
    peers: Vec<Peer>,
    /// What the peers send, each read by a thread of its own: the death of one is noticed while
    /// another is waited for.
    events: Receiver<(u32, io::Result<Frame>)>,
    patience: Duration,
    sequence: u64,
    failed: Option<CollectiveError>,
}

#[derive(Debug)]
struct Peer {
    rank: u32,
    stream: TcpStream,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The reading thread holds the connection as well: closing this end of it is not enough.
        self.stream.shutdown(Shutdown::Both).ok();
    }
}

impl Collective {
    /// Meets the other ranks: returns when all have joined. In a world of one it returns at once.
    pub(crate) fn join(rendezvous: &Rendezvous) -> Result<Self> {
        if rendezvous.rank == 0 && rendezvous.world_size > 1 {
            return Self::host(&rendezvous::listen(rendezvous)?, rendezvous);
        }
        if rendezvous.rank == 0 {
            return Self::start(rendezvous, Vec::new());
        }
        let stream = rendezvous::join(rendezvous)?;
        Self::start(rendezvous, vec![Peer { rank: 0, stream }])
    }

    /// As [`join`](Self::join) on rank 0, with a port that is listened on already.
    fn host(listener: &TcpListener, rendezvous: &Rendezvous) -> Result<Self> {
        let joined = rendezvous::host(listener, rendezvous)?;
        let peers = joined.into_iter().map(|(rank, stream)| Peer { rank, stream }).collect();
        Self::start(rendezvous, peers)
    }

    fn start(rendezvous: &Rendezvous, peers: Vec<Peer>) -> Result<Self> {
        let (sender, events) = sync_channel(2 * peers.len() + 1);
        for peer in &peers {
            let sender = sender.clone();
            let rank = peer.rank;
            peer.stream
                .set_read_timeout(None)
                .and_then(|()| peer.stream.try_clone())
                .and_then(|stream| {
                    let name = format!("read rank {rank}");
                    thread::Builder::new().name(name).spawn(move || forward(rank, stream, &sender))
                })
                .map_err(|error| CollectiveError::lost(rank, Kind::Welcome, &error))?;
        }
        Ok(Self {
            rank: rendezvous.rank,
            world_size: rendezvous.world_size,
            peers,
            events,
            patience: rendezvous.patience(),
            sequence: 0,
            failed: None,
        })
    }

    /// The bytes of every rank one after the other, in the order of ranks, on every rank.
    pub(crate) fn gather(&mut self, own: Vec<u8>) -> Result<Vec<u8>> {
        self.exchange(Kind::Gather, own, |payloads| Ok(vec![payloads.concat(); payloads.len()]))
    }

    /// Adds vectors of equal length, first those of rank 0 in their order, then those of rank 1 and so
    /// on, and gives this rank its packed share of the sum: a reduce-scatter whose bytes depend on
    /// nothing but the vectors.
    pub(crate) fn reduce(&mut self, vectors: &[Vec<f32>], shares: &Shares) -> Result<Vec<f32>> {
        let length = vectors.first().map_or(0, Vec::len);
        let own = vectors.iter().map(|vector| to_bytes(vector)).collect::<Vec<_>>().concat();
        let packed = self.exchange(Kind::Reduce, own, |payloads| {
            let sum = sum(payloads, length)?;
            let ranks = 0..payloads.len() as u32;
            Ok(ranks.map(|rank| to_bytes(&shares.pack(rank, &sum))).collect())
        })?;
        if packed.len() != shares.len_of(self.rank) * size_of::<f32>() {
            let what = format!("its answer has {} bytes", packed.len());
            return Err(self.fail(CollectiveError::Protocol { rank: 0, what }));
        }
        Ok(from_bytes(&packed))
    }

    /// Makes `flat` the same everywhere: each rank contributes its own share of it and gets the
    /// others' (an all-gather).
    pub(crate) fn share(&mut self, flat: &mut [f32], shares: &Shares) -> Result<()> {
        let own = to_bytes(&shares.pack(self.rank, flat));
        let all = self.exchange(Kind::Share, own, |payloads| {
            for (rank, payload) in (0..).zip(payloads) {
                if payload.len() != shares.len_of(rank) * size_of::<f32>() {
                    let what = format!("its share has {} bytes", payload.len());
                    return Err(CollectiveError::Protocol { rank, what });
                }
            }
            Ok(vec![payloads.concat(); payloads.len()])
        })?;
        let mut rest = from_bytes(&all);
        for rank in 0..self.world_size {
            let own = rest.split_off(shares.len_of(rank).min(rest.len()));
            if !shares.unpack(rank, &std::mem::replace(&mut rest, own), flat) {
                let what = format!("its answer has {} bytes", all.len());
                return Err(self.fail(CollectiveError::Protocol { rank: 0, what }));
            }
        }
        Ok(())
    }

    /// Sends `own` to rank 0, which makes one answer for every rank out of the payloads of all.
    fn exchange(
        &mut self,
        kind: Kind,
        own: Vec<u8>,
        combine: impl FnOnce(&[Vec<u8>]) -> Result<Vec<Vec<u8>>>,
    ) -> Result<Vec<u8>> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.sequence += 1;
        let deadline = Instant::now() + self.patience;
        let answer = match self.rank {
            0 => self.lead(kind, own, combine, deadline),
            _ => self.follow(kind, &own, deadline),
        };
        answer.map_err(|error| self.fail(error))
    }

    fn lead(
        &mut self,
        kind: Kind,
        own: Vec<u8>,
        combine: impl FnOnce(&[Vec<u8>]) -> Result<Vec<Vec<u8>>>,
        deadline: Instant,
    ) -> Result<Vec<u8>> {
        let mut payloads: Vec<Option<Vec<u8>>> = vec![None; self.world_size as usize];
        payloads[0] = Some(own);
        while let Some(missing) = payloads.iter().position(Option::is_none) {
            let (rank, payload) = self.receive(kind, missing as u32, deadline)?;
            payloads[rank as usize] = Some(payload);
        }
        let payloads: Vec<Vec<u8>> = payloads.into_iter().flatten().collect();
        let mut answers = combine(&payloads)?;
        for peer in &self.peers {
            self.send(peer, kind, &answers[peer.rank as usize], deadline)?;
        }
        Ok(answers.swap_remove(0))
    }

    fn follow(&mut self, kind: Kind, own: &[u8], deadline: Instant) -> Result<Vec<u8>> {
        let sent = self.peers.iter().try_for_each(|peer| self.send(peer, kind, own, deadline));
        // If rank 0 has hung up, its last words are still to be read and name whom it lost.
        let deadline = if sent.is_ok() { deadline } else { Instant::now() + LAST_WORDS_TIMEOUT };
        let (_, answer) = self.receive(kind, 0, deadline)?;
        sent.map(|()| answer)
    }

    fn send(&self, peer: &Peer, kind: Kind, payload: &[u8], deadline: Instant) -> Result<()> {
        let mut stream = Until { stream: &peer.stream, deadline };
        frame::write(&mut stream, kind, self.sequence, payload)
            .map_err(|error| CollectiveError::lost(peer.rank, kind, &error))
    }

    /// The next payload of this operation from any peer; `awaited` is to blame if none comes.
    fn receive(&self, kind: Kind, awaited: u32, deadline: Instant) -> Result<(u32, Vec<u8>)> {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok((rank, frame)) = self.events.recv_timeout(left) else {
            let cause = format!("it has not taken part within {:?}", self.patience);
            return Err(CollectiveError::PeerLost { rank: awaited, during: kind.name(), cause });
        };
        let frame = frame.map_err(|error| CollectiveError::lost(rank, kind, &error))?;
        if frame.kind == Kind::Abort {
            let Abort { rank, cause } =
                frame.json().map_err(|error| CollectiveError::lost(rank, kind, &error))?;
            return Err(CollectiveError::PeerLost { rank, during: kind.name(), cause });
        }
        if (frame.kind, frame.sequence) != (kind, self.sequence) {
            let (found, at) = (frame.kind.name(), frame.sequence);
            let what = format!(
                "operation {at} is its {found}, here operation {} is {}",
                self.sequence,
                kind.name()
            );
            return Err(CollectiveError::Protocol { rank, what });
        }
        Ok((rank, frame.payload))
    }

    /// Ends the attempt on this rank; rank 0 tells the others, so that they need not wait.
    fn fail(&mut self, error: CollectiveError) -> CollectiveError {
        if self.rank == 0 {
            let others = self.peers.iter().filter(|peer| Some(peer.rank) != error.rank());
            rendezvous::abort(others.map(|peer| &peer.stream), &error);
        }
        self.peers.clear();
        self.failed.insert(error).clone()
    }
}

/// Passes on what `rank` sends until its connection or this end of the channel closes.
fn forward(rank: u32, mut stream: TcpStream, events: &SyncSender<(u32, io::Result<Frame>)>) {
    loop {
        let frame = frame::read(&mut stream, PAYLOAD_BYTES_MAX);
        let ended = frame.is_err();
        if events.send((rank, frame)).is_err() || ended {
            return;
        }
    }
}

/// The sum of all vectors in all payloads, one after the other.
fn sum(payloads: &[Vec<u8>], length: usize) -> Result<Vec<f32>> {
    let mut sum = vec![0.0_f32; length];
    for (rank, payload) in (0..).zip(payloads) {
        let bytes = length * size_of::<f32>();
        if bytes == 0 || payload.is_empty() || payload.len() % bytes != 0 {
            let what = format!("{} bytes are no vectors of {length} numbers", payload.len());
            return Err(CollectiveError::Protocol { rank, what });
        }
        for vector in payload.chunks_exact(bytes) {
            for (sum, number) in sum.iter_mut().zip(vector.as_chunks().0) {
                *sum += f32::from_le_bytes(*number);
            }
        }
    }
    Ok(sum)
}

pub(super) fn to_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().map(|number| number.to_le_bytes()).collect::<Vec<_>>().into_flattened()
}

fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number)).collect()
}

#[cfg(test)]
pub(crate) mod tests;

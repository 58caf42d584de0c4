//! Rank 0's side of the watch: it hears all ranks, and judges.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use super::board::{
    Board, HEARTBEAT, LOOK, Post, SETTLING, SUSPICIOUS_SILENCE, Shared, Step, Trouble, died,
    failed, left, silent,
};
use super::connection::{Connection, Deadline};
use super::fault::{Fault, GroupError, seconds};

/// Another rank, as rank 0 hears it.
struct Peer {
    rank: usize,
    connection: Connection,
    step: Step,
    trouble: Option<Trouble>,
    /// Its reason to leave; empty for a good one.
    left: Option<String>,
}

impl Peer {
    fn hear(&mut self, line: &str) {
        let mut parts = line.split('\t');
        let mut next = || parts.next().unwrap_or_default();
        match next() {
            "step" => self.step = Step::from_parts(next(), next()),
            "trouble" => {
                let parts = [next(), next(), next(), next()];
                self.trouble.get_or_insert(Trouble::from_parts(parts));
            }
            "left" => self.left = Some(next().into()),
            _ => {}
        }
    }

    fn is_lost(&self) -> bool {
        self.connection.is_closed() && self.left.is_none()
    }
}

/// Lets all other ranks in that know the secret.
pub(super) fn let_in(
    listener: &TcpListener,
    secret: &str,
    post: &Post,
    deadline: Deadline,
) -> Result<Vec<(usize, Connection)>, GroupError> {
    let size = post.roster.members().len();
    let broken = |error: std::io::Error| {
        GroupError::new(Fault::Engine, Some(0), format!("{}: {error}", post.roster.name(0)))
    };
    listener.set_nonblocking(true).map_err(broken)?;
    let (mut strangers, mut guests) = (Vec::new(), Vec::new());
    while guests.len() + 1 < size {
        while let Ok((stream, _)) = listener.accept() {
            strangers.push(Connection::new(stream).map_err(broken)?);
        }
        for mut stranger in std::mem::take(&mut strangers) {
            match greeted(&mut stranger, secret) {
                Some(rank) if rank < size => guests.push((rank, stranger)),
                Some(_) => {}
                None if stranger.is_closed() => {}
                None => strangers.push(stranger),
            }
        }
        if deadline.is_over() {
            let absent = (1..size).find(|rank| !guests.iter().any(|(guest, _)| guest == rank));
            let name = absent.map(|rank| post.roster.name(rank)).unwrap_or_default();
            let message = format!("{name} did not connect to {}", post.roster.name(0));
            return Err(GroupError::new(Fault::Missing, absent, message));
        }
        std::thread::sleep(LOOK.min(deadline.remaining()));
    }
    Ok(guests)
}

/// The rank of a stranger who says the secret.
fn greeted(stranger: &mut Connection, secret: &str) -> Option<usize> {
    let lines = stranger.receive(Duration::ZERO);
    let rest = lines.first()?.strip_prefix("hello\t")?.strip_prefix(secret)?;
    rest.strip_prefix('\t')?.parse().ok()
}

/// The watching thread of rank 0.
pub(super) struct Hub {
    post: Post,
    peers: Vec<Peer>,
    told: Instant,
    /// When the first sign of trouble came.
    alarmed: Option<Instant>,
    judged: bool,
}

impl Hub {
    pub(super) fn new(post: Post, guests: Vec<(usize, Connection)>) -> Self {
        let peer = |(rank, connection)| {
            let (step, trouble, left) = (Step::default(), None, None);
            Peer { rank, connection, step, trouble, left }
        };
        let mut peers: Vec<Peer> = guests.into_iter().map(peer).collect();
        peers.sort_by_key(|peer| peer.rank);
        Self { post, peers, told: Instant::now(), alarmed: None, judged: false }
    }

    pub(super) fn watch(mut self, shared: &Shared) {
        let mut looked = Instant::now();
        loop {
            let elapsed = std::mem::replace(&mut looked, Instant::now()).elapsed();
            for peer in &mut self.peers {
                for line in peer.connection.receive(elapsed) {
                    peer.hear(&line);
                }
            }
            let verdict = self.verdict(&shared.lock());
            if let Some(verdict) = verdict {
                self.judged = true;
                self.tell_all(&format!("verdict\t{}", verdict.to_line()));
                shared.publish(verdict);
            }
            if self.tell(&shared.lock()) {
                return;
            }
            shared.rest();
        }
    }

    fn tell_all(&mut self, line: &str) {
        for peer in &mut self.peers {
            peer.connection.send(line);
        }
    }

    /// Tells the others what the board says; whether this rank leaves.
    fn tell(&mut self, board: &Board) -> bool {
        if let Some(reason) = &board.leaving {
            self.tell_all(&format!("left\t{reason}"));
            return true;
        }
        if self.told.elapsed() >= HEARTBEAT {
            self.told = Instant::now();
            self.tell_all("here");
        }
        false
    }

    /// The verdict on the group, the first time that there is one.
    fn verdict(&mut self, board: &Board) -> Option<GroupError> {
        if self.judged {
            return None;
        }
        if let Some(verdict) = self.mismatch(board).or_else(|| self.endless_silence()) {
            return Some(verdict);
        }
        let is_alarming = |peer: &Peer| {
            peer.is_lost()
                || peer.trouble.is_some()
                || peer.left.as_ref().is_some_and(|reason| !reason.is_empty())
        };
        if board.trouble.is_none() && !self.peers.iter().any(is_alarming) {
            return None;
        }
        let alarmed = *self.alarmed.get_or_insert_with(Instant::now);
        (alarmed.elapsed() >= SETTLING).then(|| self.judge(board))
    }

    /// A rank that called another operation than rank 0.
    fn mismatch(&self, board: &Board) -> Option<GroupError> {
        let first = board.history.front()?.number;
        for peer in &self.peers {
            let place = peer.step.number.checked_sub(first).and_then(|n| usize::try_from(n).ok());
            let Some(own) = place.and_then(|place| board.history.get(place)) else { continue };
            if own.what != peer.step.what {
                let message = format!(
                    "{} called {}, where {} called {}",
                    self.name(peer),
                    peer.step,
                    self.post.roster.name(0),
                    own.what
                );
                return Some(GroupError::new(Fault::Desynchronised, Some(peer.rank), message));
            }
        }
        None
    }

    fn endless_silence(&self) -> Option<GroupError> {
        let limit = self.post.longest_silence;
        let peer = self
            .peers
            .iter()
            .find(|peer| peer.left.is_none() && peer.connection.silence() > limit)?;
        Some(self.silent(peer))
    }

    fn judge(&self, board: &Board) -> GroupError {
        let reason = |peer: &Peer| peer.left.clone().filter(|reason| !reason.is_empty());
        if let Some((peer, reason)) = self.peers.iter().find_map(|peer| Some((peer, reason(peer)?)))
        {
            return left(peer.rank, &self.name(peer), &reason);
        }
        if let Some(peer) = self.peers.iter().find(|peer| peer.is_lost()) {
            return died(peer.rank, &self.name(peer), Some(&peer.step));
        }
        let silence =
            |peer: &&Peer| peer.left.is_none() && peer.connection.silence() > SUSPICIOUS_SILENCE;
        if let Some(peer) = self.peers.iter().find(silence) {
            return self.silent(peer);
        }
        let troubled = self.peers.iter().find(|peer| peer.trouble.is_some());
        let (rank, trouble) = match (&board.trouble, troubled) {
            (Some(trouble), _) => (0, trouble.clone()),
            (None, Some(Peer { rank, trouble: Some(trouble), .. })) => (*rank, trouble.clone()),
            _ => return GroupError::new(Fault::Engine, None, "the group failed"),
        };
        self.late(&trouble, board)
            .or_else(|| {
                let peer = self.peers.iter().find(|peer| peer.left.is_some())?;
                Some(left(peer.rank, &self.name(peer), ""))
            })
            .unwrap_or_else(|| failed(rank, &self.post.roster.name(rank), &trouble))
    }

    /// The ranks that did not come to an operation whose time is over.
    fn late(&self, trouble: &Trouble, board: &Board) -> Option<GroupError> {
        let timeout = trouble.timeout?;
        let everybody = std::iter::once((0, &board.step, false))
            .chain(self.peers.iter().map(|peer| (peer.rank, &peer.step, peer.left.is_some())));
        let late: Vec<_> = everybody
            .filter(|(_, step, left)| step.number < trouble.step.number && !left)
            .collect();
        let (rank, step, _) = *late.first()?;
        let names: Vec<_> = late.iter().map(|(rank, ..)| self.post.roster.name(*rank)).collect();
        let message = format!(
            "{} did not come to {} within {} s; rank {rank} was last at {step}",
            names.join(", "),
            trouble.step,
            seconds(timeout)
        );
        Some(GroupError::new(Fault::Late, Some(rank), message))
    }

    fn name(&self, peer: &Peer) -> String {
        self.post.roster.name(peer.rank)
    }

    fn silent(&self, peer: &Peer) -> GroupError {
        let here = self.post.roster.host(0);
        silent(peer.rank, &self.name(peer), peer.connection.silence(), &here)
    }
}

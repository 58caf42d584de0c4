//! The watch of a rank other than 0: it tells rank 0 where the rank is, and hears its verdicts.

use std::time::Instant;

use super::board::{
    HEARTBEAT, LOOK, Post, SETTLING, SUSPICIOUS_SILENCE, Shared, Trouble, VERDICT, died, failed,
    left, silent,
};
use super::connection::Connection;
use super::fault::GroupError;

/// The watching thread of a rank other than 0.
pub(super) struct Spoke {
    post: Post,
    connection: Connection,
    /// When rank 0 was last told where this rank is.
    told: Instant,
    /// When rank 0 was asked for a verdict.
    asked: Option<(Instant, Trouble)>,
    /// Rank 0's reason to leave; empty for a good one.
    left: Option<String>,
}

impl Spoke {
    pub(super) fn new(post: Post, connection: Connection) -> Self {
        Self { post, connection, told: Instant::now(), asked: None, left: None }
    }

    pub(super) fn watch(mut self, shared: &Shared) {
        let mut looked = Instant::now();
        loop {
            let elapsed = std::mem::replace(&mut looked, Instant::now()).elapsed();
            for line in self.connection.receive(elapsed) {
                self.hear(&line, shared);
            }
            if let Some(verdict) = self.own_verdict() {
                shared.publish(verdict);
            }
            if self.tell(shared) {
                return;
            }
            shared.rest();
        }
    }

    fn hear(&mut self, line: &str, shared: &Shared) {
        match line.split_once('\t').unwrap_or((line, "")) {
            ("verdict", error) => shared.publish(GroupError::from_line(error)),
            ("left", reason) => self.left = Some(reason.into()),
            _ => {}
        }
    }

    /// A verdict where rank 0 gives none.
    fn own_verdict(&self) -> Option<GroupError> {
        let Post { rank, roster, longest_silence } = &self.post;
        let hub = roster.name(0);
        let asked = self.asked.as_ref().map(|(when, trouble)| (when.elapsed(), trouble));
        match (&self.left, asked) {
            (Some(reason), _) if !reason.is_empty() => return Some(left(0, &hub, reason)),
            (Some(_), Some(_)) => return Some(left(0, &hub, "")),
            (None, _) if self.connection.is_closed() => return Some(died(0, &hub, None)),
            _ => {}
        }
        let silence = self.connection.silence();
        let suspected = asked.is_some_and(|(waited, _)| waited > SETTLING);
        if silence > *longest_silence || (suspected && silence > SUSPICIOUS_SILENCE) {
            return Some(silent(0, &hub, silence, &roster.host(*rank)));
        }
        let (waited, trouble) = asked?;
        (waited + LOOK > VERDICT / 2).then(|| failed(*rank, &roster.name(*rank), trouble))
    }

    /// Tells rank 0 what the board says; whether this rank leaves.
    fn tell(&mut self, shared: &Shared) -> bool {
        let board = shared.lock();
        if let Some(reason) = &board.leaving {
            self.connection.send(&format!("left\t{reason}"));
            return true;
        }
        if let (Some(trouble), None) = (&board.trouble, &self.asked) {
            self.connection.send(&trouble.to_line());
            self.asked = Some((Instant::now(), trouble.clone()));
        }
        if self.told.elapsed() >= HEARTBEAT {
            self.told = Instant::now();
            self.connection.send(&board.step.to_line());
        }
        false
    }
}

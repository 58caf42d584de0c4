//! Lines of text over a TCP connection that never blocks its reader or writer.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Bytes that may wait to be sent: more means that nobody reads at the other end.
const MOST_WAITING: usize = 1 << 16;
/// Longest time that one look at the connection counts as silence. A process that was itself stopped must
/// not blame the others for the time.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// A point in time that work must not pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Instant);

impl Deadline {
    pub(super) fn after(duration: Duration) -> Self {
        // A year is as good as more.
        Self(Instant::now() + duration.min(Duration::from_secs(365 * 24 * 3600)))
    }

    pub(super) fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub(super) fn is_over(self) -> bool {
        self.remaining().is_zero()
    }
}

/// A connection to another process.
pub(super) struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    waiting: Vec<u8>,
    closed: bool,
    silence: Duration,
}

impl Connection {
    /// Connects within a time.
    pub(super) fn open(place: SocketAddr, patience: Duration) -> std::io::Result<Self> {
        Self::new(TcpStream::connect_timeout(&place, patience)?)
    }

    /// Takes an accepted stream over.
    pub(super) fn new(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let (received, waiting, closed) = (Vec::new(), Vec::new(), false);
        Ok(Self { stream, received, waiting, closed, silence: Duration::ZERO })
    }

    /// Sends a line. It may arrive later or, where the other end does not read, never.
    pub(super) fn send(&mut self, line: &str) {
        if self.waiting.len() < MOST_WAITING {
            self.waiting.extend_from_slice(line.as_bytes());
            self.waiting.push(b'\n');
        }
        self.flush();
    }

    fn flush(&mut self) {
        while !self.waiting.is_empty() {
            match self.stream.write(&self.waiting) {
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Reading tells whether the other end is gone.
                Err(_) => return,
            }
        }
    }

    /// The lines that have come since the last call, which was `elapsed` ago.
    pub(super) fn receive(&mut self, elapsed: Duration) -> Vec<String> {
        self.flush();
        let heard = self.read();
        match heard {
            true => self.silence = Duration::ZERO,
            false => self.silence += elapsed.min(LONGEST_LOOK),
        }
        let Some(end) = self.received.iter().rposition(|&byte| byte == b'\n') else {
            return Vec::new();
        };
        let whole: Vec<u8> = self.received.drain(..=end).collect();
        String::from_utf8_lossy(&whole).lines().map(String::from).collect()
    }

    /// Reads what is there; whether that was anything.
    fn read(&mut self) -> bool {
        let (mut buffer, before) = ([0; 4096], self.received.len());
        while !self.closed {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.closed = true,
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.closed = true,
            }
        }
        self.received.len() > before
    }

    /// Whether the other end is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Time since something was heard.
    pub(super) fn silence(&self) -> Duration {
        self.silence
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn lines_arrive_whole_and_an_end_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let second = Duration::from_secs(1);
        let mut one = Connection::open(listener.local_addr().unwrap(), second).unwrap();
        let mut other = Connection::new(listener.accept().unwrap().0).unwrap();
        let long = "x".repeat(10_000);
        one.send("first");
        one.send(&long);
        let mut lines = Vec::new();
        while lines.len() < 2 {
            lines.extend(other.receive(Duration::ZERO));
        }
        assert_eq!(lines, ["first", &long]);
        assert!(other.receive(Duration::from_secs(60)).is_empty());
        assert_eq!(other.silence(), LONGEST_LOOK);
        drop(one);
        while !other.is_closed() {
            other.receive(Duration::ZERO);
        }
    }
}

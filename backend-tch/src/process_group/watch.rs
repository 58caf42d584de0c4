//! Presence of the ranks: a connection from every rank to rank 0 beside the engine's.
//!
//! The engine says that something went wrong, but not on which rank. So every rank has a thread that tells
//! rank 0 a few times a second in which operation it is, and rank 0 tells the others. A process that ends
//! closes its connection; one that is stopped, or cut off, falls silent; one that is late or has called
//! another operation says so itself. Rank 0 judges, and all ranks get the same verdict.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::board::{LOOK, Post, Shared, Step, Trouble, VERDICT};
use super::connection::{Connection, Deadline};
use super::fault::{Fault, GroupError};
use super::hub::{self, Hub};
use super::spoke::Spoke;

/// The watching thread of this rank.
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Cell<Option<JoinHandle<()>>>,
}

/// A socket for the others to connect to, and the word that they must say.
pub(super) struct Door {
    listener: TcpListener,
    secret: String,
}

impl Door {
    /// Opens a door at an address.
    pub(super) fn open(address: IpAddr) -> std::io::Result<Self> {
        use std::hash::{BuildHasher, Hasher};
        let random = || std::collections::hash_map::RandomState::new().build_hasher().finish();
        let secret = format!("{:016x}{:016x}", random(), random());
        Ok(Self { listener: TcpListener::bind((address, 0))?, secret })
    }

    /// A line for the others.
    pub(super) fn to_line(&self) -> std::io::Result<String> {
        Ok(format!("{}\t{}", self.listener.local_addr()?, self.secret))
    }
}

impl Watch {
    /// Rank 0: lets all others in, then watches them.
    pub(super) fn over(door: Door, post: Post, deadline: Deadline) -> Result<Self, GroupError> {
        let guests = hub::let_in(&door.listener, &door.secret, &post, deadline)?;
        Self::start(move |shared| Hub::new(post, guests).watch(&shared))
    }

    /// Any other rank: connects to rank 0's door.
    pub(super) fn under(door: &str, post: Post, deadline: Deadline) -> Result<Self, GroupError> {
        let unreachable = |reason: String| {
            let name = post.roster.name(0);
            let message =
                format!("{name} cannot be reached from {}: {reason}", post.roster.name(post.rank));
            GroupError::new(Fault::Missing, Some(0), message)
        };
        let (place, secret) = door.split_once('\t').unwrap_or_default();
        let place: SocketAddr = place.parse().map_err(|_| unreachable("no address".into()))?;
        let patience = deadline.remaining().max(LOOK);
        let mut connection =
            Connection::open(place, patience).map_err(|error| unreachable(error.to_string()))?;
        connection.send(&format!("hello\t{secret}\t{}", post.rank));
        Self::start(move |shared| Spoke::new(post, connection).watch(&shared))
    }

    fn start(run: impl FnOnce(Arc<Shared>) + Send + 'static) -> Result<Self, GroupError> {
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("sppo-watch".into());
        let thread = thread.spawn(move || run(own)).map_err(|error| {
            GroupError::new(Fault::Engine, None, format!("no thread can be started: {error}"))
        })?;
        Ok(Self { shared, thread: Cell::new(Some(thread)) })
    }

    /// Writes down that this rank begins an operation.
    pub(super) fn begin(&self, step: Step) {
        self.shared.begin(step);
    }

    /// The verdict on the group, if it has failed.
    pub(super) fn verdict(&self) -> Option<GroupError> {
        self.shared.lock().verdict.clone()
    }

    /// The verdict on an operation that failed here.
    pub(super) fn judge(&self, trouble: &Trouble, own_name: &str) -> GroupError {
        self.shared.report(trouble);
        self.shared.wait_for_verdict(Deadline::after(VERDICT)).unwrap_or_else(|| {
            let message = format!("{own_name}: {}: {}", trouble.step, trouble.text);
            GroupError::new(Fault::Engine, None, message)
        })
    }

    /// Tells the others that this rank leaves, and why if it should not.
    pub(super) fn leave(&self, reason: &str) {
        self.shared.leave(reason);
        if let Some(thread) = self.thread.take() {
            // A panic there has no meaning here any more.
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.leave(if std::thread::panicking() { "it panicked" } else { "" });
    }
}

//! Requests to services that may be slow, overloaded, broken or gone.
//!
//! [`client`] makes one attempt and says what became of it, by the way that [`route`] finds and with the
//! certificates that [`tls`] trusts. [`fleet`] knows how each endpoint is doing: how much it can take, and
//! whether it should be left alone for a while. [`queue`] decides what is sent next and what follows from
//! each attempt, and the workers of [`dispatcher`] do it.

mod backoff;
mod client;
mod dispatcher;
mod fleet;
mod queue;
mod route;
mod tls;

use std::io;

use tokio::runtime::{Builder, Runtime};

pub(crate) use client::Client;
pub(crate) use dispatcher::Dispatcher;
pub(crate) use queue::{Counters, Job, Snapshot};

/// What tasks run on: the thread that waits for them.
fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

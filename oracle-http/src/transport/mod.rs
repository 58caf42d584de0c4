//! Requests to services that may be slow, overloaded, broken or gone.
//!
//! [`client`] makes one attempt and says what became of it. [`fleet`] knows how each endpoint is doing:
//! how much it can take, and whether it should be left alone for a while. [`dispatcher`] brings the two
//! together: workers take requests from a queue, and put back those that failed.

mod backoff;
mod client;
mod dispatcher;
mod fleet;
mod proxy;
mod resolver;

pub(crate) use client::Client;
pub(crate) use dispatcher::{Counters, Dispatcher, Job, Snapshot};

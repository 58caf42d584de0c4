//! Requests to services that may be slow, overloaded, broken or gone, for plugins that ask over HTTP.
//!
//! A plugin implements [`Exchange`], which reads replies, and pushes each [`Request`] with a job of its
//! own into a [`Dispatcher`]; the replies come back with their jobs. The transport knows nothing of what
//! is asked.
//!
//! `client` makes one attempt and says what became of it, by the way that `route` finds and with the
//! certificates that `tls` trusts. `fleet` knows how each endpoint is doing: how much it can take, and
//! whether it should be left alone for a while. `queue` decides what is sent next and what follows from
//! each attempt, and the workers of `dispatcher` do it. `direct` asks one endpoint about itself. `credentials` keeps the key of a service out of
//! everything that is shown, and `refusal` reads the errors of services.

mod address;
mod backoff;
mod client;
mod credentials;
mod direct;
mod dispatcher;
mod exchange;
mod fleet;
mod queue;
mod refusal;
mod route;
mod settings;
mod tls;

/// Entry points of the fuzz targets, which see what no other crate does.
#[cfg(fuzzing)]
pub mod fuzzing {
    use crate::refusal::ErrorBody;

    /// Reads the body of an error.
    pub fn read_error(body: &[u8]) {
        if let Some(error) = ErrorBody::of(body) {
            let _ = (error.reason(Some(400), false), error.usual_status());
        }
    }
}

pub use address::Address;
pub use client::Client;
pub use direct::{Direct, Unserved, Verb};
pub use dispatcher::Dispatcher;
pub use exchange::{Exchange, Malformed, Reply, Request};
pub use queue::{Counters, Snapshot};
pub use refusal::{Reason, Refusal};
pub use settings::{ConcurrencyConfig, KeyHeader, RetryConfig, TimeoutConfig, TransportSettings};

//! Requests to one endpoint, for what each of several has to be asked or told itself.

use std::pin::pin;
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use hyper::{Method, Uri};
use sppo_plugin::PluginError;
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

use crate::address::Address;
use crate::backoff;
use crate::client::{Client, Failure, FailureKind, runtime};
use crate::exchange::Malformed;
use crate::refusal::Refusal;
use crate::settings::{RetryConfig, TransportSettings};

/// Interval at which the caller is asked whether to stop.
const TICK: Duration = Duration::from_millis(50);

/// The verb of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Reads.
    Get,
    /// Changes, or reads by a body.
    Post,
}

/// The end of a request that brought no reply of use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// The service refuses the request.
    Refused(Refusal),
    /// The service failed as often as it may; the last failure, in words.
    Failed(String),
    /// The caller asked to stop.
    Cancelled,
}

/// One endpoint, asked one thing after the other on the caller's thread, with the retries of all requests.
pub struct Direct {
    client: Client,
    address: Address,
    runtime: Runtime,
    retries: RetryConfig,
}

impl Direct {
    /// An endpoint at a base address, to whose path those of requests are added. Connects to nothing yet.
    ///
    /// # Errors
    /// A configuration error that names the setting, and never shows a key.
    pub fn new(settings: &TransportSettings<'_>, base: Address) -> Result<Self, PluginError> {
        let client = Client::new(settings, std::slice::from_ref(&base))?;
        let runtime = runtime().map_err(|error| PluginError::failed(error.to_string()))?;
        Ok(Self { client, address: base, runtime, retries: settings.retries.clone() })
    }

    /// The base address, for people.
    #[must_use]
    pub fn shown(&self) -> &str {
        self.address.shown.trim_end_matches('/')
    }

    /// Sends a request until its reply can be read, and returns what `read` makes of the body. `path` begins
    /// with a slash and may have a query; `body` is JSON. Every request may be sent several times.
    ///
    /// # Errors
    /// When the service refuses it or fails too often, or the caller wants to stop.
    pub fn ask<T>(
        &self,
        verb: Verb,
        path: &str,
        body: &[u8],
        read: &dyn Fn(&[u8]) -> Result<T, Malformed>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<T, Unserved> {
        let uri = self.uri(path)?;
        let began = Instant::now();
        let mut failures = 0;
        loop {
            let attempt = self.attempt(verb, uri.clone(), Bytes::copy_from_slice(body), read);
            let failure = match self.unless(is_cancelled, attempt)? {
                Ok(content) => return Ok(content),
                Err(Failure { kind: FailureKind::Refused(refusal), .. }) => {
                    return Err(Unserved::Refused(refusal));
                }
                Err(failure) => failure,
            };
            failures += 1;
            let wait = failure.retry_after.unwrap_or(backoff::delay(&self.retries, failures));
            let longest = Duration::from_secs_f64(self.retries.give_up_after_seconds);
            // One that cannot be reached may be starting, which takes longer than all attempts.
            let is_used_up =
                failures >= self.retries.max_attempts && failure.kind != FailureKind::Unreachable;
            if is_used_up || began.elapsed() + wait > longest {
                return Err(Unserved::Failed(failure.message));
            }
            tracing::debug!("{}: {}; trying again", self.shown(), failure.message);
            self.unless(is_cancelled, async { sleep(wait).await })?;
        }
    }

    fn uri(&self, path: &str) -> Result<Uri, Unserved> {
        let text = format!("{}{path}", self.shown());
        text.parse().map_err(|_| Unserved::Failed(format!("{text} is no address")))
    }

    async fn attempt<T>(
        &self,
        verb: Verb,
        uri: Uri,
        body: Bytes,
        read: &dyn Fn(&[u8]) -> Result<T, Malformed>,
    ) -> Result<T, Failure> {
        let method = match verb {
            Verb::Get => Method::GET,
            Verb::Post => Method::POST,
        };
        let reply = self.client.ask(0, method, uri, body).await?;
        read(&reply).map_err(|error| self.client.malformed(&error.to_string(), &reply))
    }

    /// Waits for something, unless the caller wants to stop.
    fn unless<T>(
        &self,
        is_cancelled: &dyn Fn() -> bool,
        awaited: impl Future<Output = T>,
    ) -> Result<T, Unserved> {
        self.runtime.block_on(async {
            let mut awaited = pin!(awaited);
            loop {
                match timeout(TICK, awaited.as_mut()).await {
                    Ok(outcome) => return Ok(outcome),
                    Err(_) if is_cancelled() => return Err(Unserved::Cancelled),
                    Err(_) => {}
                }
            }
        })
    }
}

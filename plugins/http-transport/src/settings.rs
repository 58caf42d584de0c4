//! Settings of the transport, by the keys that a plugin gives them in its own table.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sppo_plugin::PluginError;

/// Upper limit of `concurrency.max`: connections are cheap, but not free.
const MAX_CONCURRENCY: usize = 1024;

/// Settings of a client and its fleet. Errors name a setting by its field here, `concurrency.max` for
/// instance, so a plugin's table has to use the same keys.
#[derive(Clone, Copy, Debug)]
pub struct TransportSettings<'a> {
    /// The environment variable that holds the key of the service.
    pub api_key_env: Option<&'a str>,
    /// The file that holds the key of the service.
    pub api_key_file: Option<&'a Path>,
    /// The header that carries the key.
    pub api_key_header: &'a KeyHeader,
    /// Other headers, without secrets.
    pub headers: &'a BTreeMap<String, String>,
    /// A file with the certificates (PEM) to trust in place of the public ones.
    pub certificates: Option<&'a Path>,
    /// Requests in flight at the same time.
    pub concurrency: &'a ConcurrencyConfig,
    /// Time limits of an attempt.
    pub timeouts: &'a TimeoutConfig,
    /// Reaction to failures.
    pub retries: &'a RetryConfig,
}

impl TransportSettings<'_> {
    /// Checks the ranges of `concurrency` and `retries`. The other settings are checked where they are
    /// used, by [`Client::new`](crate::Client::new).
    ///
    /// # Errors
    /// A configuration error that names the setting.
    pub fn check(&self) -> Result<(), PluginError> {
        let concurrency = self.concurrency;
        if !(1..=MAX_CONCURRENCY).contains(&concurrency.max) || concurrency.start == 0 {
            return Err(PluginError::configuration(format!(
                "concurrency: `max` must be from 1 to {MAX_CONCURRENCY}, `start` at least 1"
            )));
        }
        let retries = self.retries;
        let durations = [
            retries.first_delay_seconds,
            retries.longest_delay_seconds,
            retries.give_up_after_seconds,
        ];
        if retries.max_attempts == 0 || !durations.iter().all(|value| (0.0..1e6).contains(value)) {
            return Err(PluginError::configuration(
                "retries: `max_attempts` must be at least 1, and the rest seconds from 0",
            ));
        }
        Ok(())
    }
}

/// The header that carries the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct KeyHeader(pub String);

impl Default for KeyHeader {
    fn default() -> Self {
        Self("Authorization".into())
    }
}

/// The limit adapts itself: it grows while the service answers and is halved when the service says that
/// it is overloaded (408, 429, 503) or does not answer in time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ConcurrencyConfig {
    /// Requests under way at the same time at each endpoint, at most.
    pub max: usize,
    /// The limit to begin with.
    pub start: usize,
}

impl Default for ConcurrencyConfig {
    fn default() -> Self {
        Self { max: 64, start: 8 }
    }
}

/// Each attempt of a request has these limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TimeoutConfig {
    /// Seconds to connect.
    pub connect_seconds: f64,
    /// Seconds in which nothing arrives.
    pub read_seconds: f64,
    /// Seconds for the whole attempt.
    pub total_seconds: f64,
}

impl Default for TimeoutConfig {
    fn default() -> Self {
        Self { connect_seconds: 10.0, read_seconds: 120.0, total_seconds: 180.0 }
    }
}

/// A request is tried again when it cannot connect, times out, is answered with 408, 425, 429 or 5xx but 501, or
/// gets a reply that makes no sense; never after another 4xx, nor when money, quota or the key is what lacks.
/// `Retry-After` is honoured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryConfig {
    /// Attempts per request before the run stops; 3 at a service that has never sent a reply that makes sense,
    /// and does not now. An attempt to find out whether an endpoint can be reached again is none.
    pub max_attempts: u32,
    /// Before the second attempt passes a random time up to this many seconds; the bound doubles with
    /// every attempt.
    pub first_delay_seconds: f64,
    /// The bound never exceeds this many seconds.
    pub longest_delay_seconds: f64,
    /// The run stops when nothing has succeeded anywhere for this many seconds.
    pub give_up_after_seconds: f64,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_attempts: 10,
            first_delay_seconds: 0.5,
            longest_delay_seconds: 30.0,
            give_up_after_seconds: 300.0,
        }
    }
}

//! One attempt of a request.

use std::io;
use std::time::Duration;

use fs_err as fs;
use sppo_core::plugin::PluginError;
use ureq::Agent;
use ureq::config::AutoHeaderValue;
use ureq::http::header::{CONTENT_TYPE, RETRY_AFTER};
use ureq::http::{HeaderName, HeaderValue, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::transport::DefaultConnector;

use super::backoff::retry_after;
use super::proxy;
use super::resolver::RememberingResolver;
use crate::address::Address;
use crate::config::{HttpConfig, TimeoutConfig};
use crate::credentials::{ApiKey, plain_headers};

/// No reply of any protocol comes near this size.
const MAX_REPLY_BYTES: u64 = 4 << 20;
const MAX_ERROR_BYTES: u64 = 64 << 10;
/// Characters of an error's body that are shown.
const EXCERPT: usize = 300;
/// Common servers close idle connections after 5 seconds; closing them first saves failed attempts.
const IDLE_LIMIT: Duration = Duration::from_secs(4);

/// What became of an attempt that did not succeed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    /// What happened, without the key.
    pub(super) message: String,
    /// How long the service asked to be left alone.
    pub(super) retry_after: Option<Duration>,
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The service is overloaded: try again, with less at the same time.
    Overloaded,
    /// It cannot be reached, has trouble of its own, or replied nonsense: try again.
    Transient,
    /// It says that the request is wrong: trying again is of no use.
    Refused(u16),
}

/// Makes requests.
pub(crate) struct Client {
    /// One for each endpoint, for each may have its own proxy.
    agents: Vec<Agent>,
    key: Option<ApiKey>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Client {
    pub(crate) fn new(config: &HttpConfig, addresses: &[Address]) -> Result<Self, PluginError> {
        let connections = config.concurrency.max;
        let TimeoutConfig { connect_seconds, read_seconds, total_seconds } = config.timeouts;
        let mut tls = TlsConfig::builder();
        if let Some(path) = &config.certificates {
            tls = tls.root_certs(certificates(path)?);
        }
        let tls = tls.build();
        let connect = seconds("timeouts.connect_seconds", connect_seconds)?;
        let read = seconds("timeouts.read_seconds", read_seconds)?;
        let total = seconds("timeouts.total_seconds", total_seconds)?;
        let agent = |address: &Address| {
            let settings = Agent::config_builder()
                .tls_config(tls.clone())
                .proxy(proxy::for_address(&address.uri)?)
                .http_status_as_error(false)
                // A redirect would carry headers to a place that the user did not name.
                .max_redirects(0)
                .max_redirects_will_error(false)
                .user_agent(concat!("sppo/", env!("CARGO_PKG_VERSION")))
                .accept("application/json")
                // Small replies gain nothing, and a compressed one may be larger than it looks.
                .accept_encoding(AutoHeaderValue::None)
                .max_idle_connections(connections)
                .max_idle_connections_per_host(connections)
                .max_idle_age(IDLE_LIMIT)
                .timeout_connect(Some(connect))
                .timeout_per_read(Some(read))
                .timeout_global(Some(total))
                .build();
            let resolver: RememberingResolver = RememberingResolver::default();
            Ok(Agent::with_parts(settings, DefaultConnector::default(), resolver))
        };
        let agents = addresses.iter().map(agent).collect::<Result<_, PluginError>>()?;
        Ok(Self { agents, key: ApiKey::load(config)?, headers: plain_headers(config)? })
    }

    /// Sends a body to the endpoint of this number and returns the reply's.
    pub(super) fn post(
        &self,
        endpoint: usize,
        address: &Address,
        body: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        let mut request =
            self.agents[endpoint].post(&address.uri).header(CONTENT_TYPE, "application/json");
        for (name, value) in self.headers.iter().map(|(name, value)| (name, value)) {
            request = request.header(name, value);
        }
        if let Some(key) = &self.key {
            let (name, value) = key.header();
            request = request.header(name, value);
        }
        let mut response = request.send(body).map_err(|error| self.not_answered(&error))?;
        let status = response.status();
        if status.is_success() {
            let body = response.body_mut().with_config().limit(MAX_REPLY_BYTES).read_to_vec();
            return body.map_err(|error| self.not_answered(&error));
        }
        let wait = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = wait.and_then(retry_after);
        // What it says only explains the status; without it the status must do.
        let said = response.body_mut().with_config().limit(MAX_ERROR_BYTES).read_to_vec();
        Err(self.refused(status, &said.unwrap_or_default(), retry_after))
    }

    fn refused(&self, status: StatusCode, body: &[u8], retry_after: Option<Duration>) -> Failure {
        let kind = match status.as_u16() {
            408 | 429 | 503 | 529 => FailureKind::Overloaded,
            425 | 500..=599 => FailureKind::Transient,
            other => FailureKind::Refused(other),
        };
        let said = self.excerpt(body);
        let message = match said.is_empty() {
            true => status.to_string(),
            false => format!("{status}: {said}"),
        };
        Failure { kind, message, retry_after }
    }

    fn not_answered(&self, error: &ureq::Error) -> Failure {
        let kind = match error {
            ureq::Error::Timeout(_) => FailureKind::Overloaded,
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
                FailureKind::Overloaded
            }
            _ => FailureKind::Transient,
        };
        let message = match error {
            ureq::Error::BodyExceedsLimit(_) => {
                format!("the reply is larger than {} MiB", MAX_REPLY_BYTES >> 20)
            }
            ureq::Error::Timeout(what) => format!("timed out ({what})"),
            other => other.to_string(),
        };
        Failure { kind, message: self.clean(&message), retry_after: None }
    }

    /// The failure of a reply that makes no sense.
    pub(super) fn malformed(&self, reason: &str, body: &[u8]) -> Failure {
        let message = match self.excerpt(body) {
            said if said.is_empty() => format!("an empty reply ({})", self.clean(reason)),
            said => format!("a reply that makes no sense ({}): {said}", self.clean(reason)),
        };
        Failure { kind: FailureKind::Transient, message, retry_after: None }
    }

    /// The beginning of a body, on one line.
    fn excerpt(&self, body: &[u8]) -> String {
        let end = body.len().min(4 * EXCERPT);
        self.clean(&String::from_utf8_lossy(&body[..end]))
    }

    /// One line of at most `EXCERPT` characters, without the key. The key goes first, lest a part of it
    /// remain at the cut.
    pub(super) fn clean(&self, text: &str) -> String {
        let text = self.key.as_ref().map_or_else(|| text.to_owned(), |key| key.redact(text));
        let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c.is_control()).collect();
        let line = words.join(" ");
        match line.char_indices().nth(EXCERPT) {
            Some((cut, _)) => format!("{}...", &line[..cut]),
            None => line,
        }
    }
}

fn seconds(setting: &str, value: f64) -> Result<Duration, PluginError> {
    Duration::try_from_secs_f64(value).ok().filter(|duration| !duration.is_zero()).ok_or_else(
        || {
            PluginError::configuration(format!(
                "{setting}: {value} is not a number of seconds above 0"
            ))
        },
    )
}

fn certificates(path: &std::path::Path) -> Result<RootCerts, PluginError> {
    let unusable = |reason: String| {
        PluginError::configuration(format!("certificates: {reason}"))
            .with_hint("give a file with certificates in PEM form")
    };
    let bytes = fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let mut trusted = Vec::new();
    for item in parse_pem(&bytes) {
        match item {
            Ok(PemItem::Certificate(certificate)) => trusted.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(unusable(format!("{}: {error}", path.display()))),
        }
    }
    if trusted.is_empty() {
        return Err(unusable(format!("{}: there is no certificate in it", path.display())));
    }
    Ok(RootCerts::from(trusted))
}

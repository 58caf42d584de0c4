//! One attempt of a request.

use std::error::Error;
use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use sppo_plugin::PluginError;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::address::Address;
use crate::backoff::retry_after;
use crate::credentials::{ApiKey, plain_headers};
use crate::refusal::{ErrorBody, Reason, Refusal};
use crate::route::Connector;
use crate::settings::TransportSettings;
use crate::tls;

/// No reply of any protocol comes near this size.
const MAX_REPLY_BYTES: usize = 4 << 20;
const MAX_ERROR_BYTES: usize = 64 << 10;
/// Characters of an error's body that are shown.
const EXCERPT: usize = 300;
/// Characters of it that its reason is looked for in.
const DETAILS: usize = 4000;
/// Common servers close idle connections after 5 seconds; closing them first saves failed attempts.
const IDLE_LIMIT: Duration = Duration::from_secs(4);

/// An attempt that did not succeed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    /// A sentence for people, without the key.
    pub(crate) message: String,
    /// The time for which the service asked to be left alone.
    pub(crate) retry_after: Option<Duration>,
}

/// The reaction that a failure calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// The service is overloaded: try again, with less at the same time.
    Overloaded,
    /// The service cannot be reached, so the request was not sent: try again.
    Unreachable,
    /// The service has trouble of its own: try again.
    Transient,
    /// The service sent a reply that makes no sense: try again.
    Unreadable,
    /// The service says that the request is wrong, or the account: trying again is of no use.
    Refused(Refusal),
}

/// A client of services, with their connections.
pub struct Client {
    endpoints: Vec<Endpoint>,
    headers: HeaderMap,
    key: Option<ApiKey>,
    limits: Limits,
}

/// A service and the connections to it. Each has its own, for each may have its own proxy.
struct Endpoint {
    uri: Uri,
    connector: Connector,
    connections: legacy::Client<Connector, Full<Bytes>>,
}

#[derive(Clone, Copy)]
struct Limits {
    connect: Duration,
    read: Duration,
    total: Duration,
}

/// The reason why there is no reply.
enum Unanswered {
    TimedOut(&'static str),
    CannotConnect(String),
    BrokenOff(String),
}

/// A body, as far as it was read.
enum Body {
    Whole(Vec<u8>),
    /// The first bytes of a body that is larger than the limit.
    Beginning(Vec<u8>),
}

impl Client {
    /// Reads the key and the certificates that the settings name, and connects to nothing yet.
    ///
    /// # Errors
    /// A configuration error that names the setting, and never shows a key.
    pub fn new(
        settings: &TransportSettings<'_>,
        addresses: &[Address],
    ) -> Result<Self, PluginError> {
        let key = ApiKey::load(settings)?;
        let headers = headers(settings, key.as_ref())?;
        let limits = Limits::new(settings)?;
        let tls = tls::trusting(settings.certificates)?;
        let endpoint = |address: &Address| {
            let connector = Connector::new(&address.uri, limits.connect, tls.clone())?;
            let connections = legacy::Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_LIMIT)
                .pool_max_idle_per_host(settings.concurrency.max)
                .build(connector.clone());
            Ok(Endpoint { uri: address.uri.clone(), connector, connections })
        };
        let endpoints = addresses.iter().map(endpoint).collect::<Result<_, PluginError>>()?;
        Ok(Self { endpoints, headers, key, limits })
    }

    /// Finds out whether any endpoint can be reached, by a connection that asks nothing.
    ///
    /// # Errors
    /// None can be reached; the message says why for each.
    pub fn require_service(&self) -> Result<(), PluginError> {
        let runtime = runtime().map_err(|error| PluginError::failed(error.to_string()))?;
        let reached = runtime.block_on(self.reach());
        // Looking up a name cannot be broken off.
        runtime.shutdown_background();
        reached.map_err(PluginError::failed)
    }

    async fn reach(&self) -> Result<(), String> {
        let mut messages = Vec::new();
        for Endpoint { uri, connector, .. } in &self.endpoints {
            match connector.clone().connect(uri.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    let reason = Unanswered::new(error.as_ref(), true);
                    messages.push(format!("{uri}: {}", self.not_answered(&reason).message));
                }
            }
        }
        Err(messages.join("; "))
    }

    /// Sends a body to the endpoint of this number and returns the reply's.
    pub(crate) async fn post(&self, endpoint: usize, body: Bytes) -> Result<Vec<u8>, Failure> {
        let uri = self.endpoints[endpoint].uri.clone();
        self.ask(endpoint, Method::POST, uri, body).await
    }

    /// Sends a request to the endpoint of this number, by its connections, and returns the reply's body.
    pub(crate) async fn ask(
        &self,
        endpoint: usize,
        method: Method,
        uri: Uri,
        body: Bytes,
    ) -> Result<Vec<u8>, Failure> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        let attempt = timeout(self.limits.total, self.attempt(endpoint, request));
        attempt.await.unwrap_or_else(|_| Err(self.not_answered(&Unanswered::TimedOut("in all"))))
    }

    async fn attempt(
        &self,
        endpoint: usize,
        request: Request<Full<Bytes>>,
    ) -> Result<Vec<u8>, Failure> {
        let sent = self.send(endpoint, request).await;
        let response = sent.map_err(|error| self.not_answered(&error))?;
        let status = response.status();
        if status.is_success() {
            let body = self.read(response, MAX_REPLY_BYTES).await;
            return match body.map_err(|error| self.not_answered(&error))? {
                Body::Whole(body) => Ok(body),
                Body::Beginning(_) => Err(too_large()),
            };
        }
        let wait = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = wait.and_then(retry_after);
        // The body only explains the status; without it the status must do.
        let said = match self.read(response, MAX_ERROR_BYTES).await {
            Ok(Body::Whole(said) | Body::Beginning(said)) => said,
            Err(_) => Vec::new(),
        };
        Err(self.refused(status, &said, retry_after))
    }

    async fn send(
        &self,
        endpoint: usize,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Unanswered> {
        let Endpoint { connections, .. } = &self.endpoints[endpoint];
        match timeout(self.limits.read, connections.request(request)).await {
            Err(_) => Err(Unanswered::TimedOut("waiting for a reply")),
            Ok(sent) => sent.map_err(|error| Unanswered::new(&error, error.is_connect())),
        }
    }

    async fn read(&self, reply: Response<Incoming>, limit: usize) -> Result<Body, Unanswered> {
        let mut incoming = reply.into_body();
        let mut body = Vec::new();
        while let Some(frame) = timeout(self.limits.read, incoming.frame())
            .await
            .map_err(|_| Unanswered::TimedOut("in the middle of a reply"))?
        {
            let frame = frame.map_err(|error| Unanswered::new(&error, false))?;
            let data = frame.data_ref().map_or(&[][..], |data| data);
            let room = limit - body.len();
            if data.len() > room {
                body.extend_from_slice(&data[..room]);
                return Ok(Body::Beginning(body));
            }
            body.extend_from_slice(data);
        }
        Ok(Body::Whole(body))
    }

    /// The failure that a status says.
    fn refused(&self, status: StatusCode, body: &[u8], retry_after: Option<Duration>) -> Failure {
        let said = self.excerpt(body);
        let message = match said.is_empty() {
            true => status.to_string(),
            false => format!("{status}: {said}"),
        };
        // The pages of servers that stand between are full of words.
        let words = if status.is_client_error() { said.as_str() } else { "" };
        let error = ErrorBody::of(body).unwrap_or_else(|| ErrorBody::of_text(words));
        let kind = self.kind(status.as_u16(), &error, retry_after.is_some(), body);
        Failure { kind, message, retry_after }
    }

    /// The reaction that an error with this status calls for.
    fn kind(&self, status: u16, error: &ErrorBody, comes_back: bool, body: &[u8]) -> FailureKind {
        match (error.reason(Some(status), comes_back), status) {
            (Reason::Request, 408 | 429 | 503 | 529) => FailureKind::Overloaded,
            // What is not implemented is so the next time.
            (Reason::Request, 425 | 500 | 502..=599) => FailureKind::Transient,
            (reason, status) => {
                FailureKind::Refused(Refusal { status, reason, details: self.line(body, DETAILS) })
            }
        }
    }

    fn not_answered(&self, reason: &Unanswered) -> Failure {
        let (kind, message) = match reason {
            Unanswered::TimedOut(when) => (FailureKind::Overloaded, format!("timed out {when}")),
            Unanswered::CannotConnect(reason) => {
                (FailureKind::Unreachable, format!("cannot connect: {reason}"))
            }
            Unanswered::BrokenOff(reason) => (FailureKind::Transient, reason.clone()),
        };
        Failure { kind, message: self.clean(&message), retry_after: None }
    }

    /// The failure of a reply, with a status of success, that makes no sense or is an error.
    pub(crate) fn malformed(&self, reason: &str, body: &[u8]) -> Failure {
        let said = self.excerpt(body);
        let reason = self.clean(reason);
        let (kind, message) = match ErrorBody::of(body) {
            Some(error) => {
                let status = error.status.or_else(|| error.usual_status());
                let kind = status.map(|status| self.kind(status, &error, false, body));
                let message = format!("an error in place of a reply: {said}");
                (kind.unwrap_or(FailureKind::Transient), message)
            }
            None if said.is_empty() => {
                (FailureKind::Unreadable, format!("an empty reply ({reason})"))
            }
            None => {
                let message = format!("a reply that makes no sense ({reason}): {said}");
                (FailureKind::Unreadable, message)
            }
        };
        Failure { kind, message, retry_after: None }
    }

    /// The beginning of a body, on one line.
    fn excerpt(&self, body: &[u8]) -> String {
        self.line(body, EXCERPT)
    }

    fn line(&self, body: &[u8], longest: usize) -> String {
        let end = body.len().min(4 * longest);
        self.cleaned(&String::from_utf8_lossy(&body[..end]), longest)
    }

    /// One line of at most `EXCERPT` characters, without the key.
    pub(crate) fn clean(&self, text: &str) -> String {
        self.cleaned(text, EXCERPT)
    }

    /// One line of at most `longest` characters. The key is removed before the cut, which might leave a part
    /// of it.
    fn cleaned(&self, text: &str, longest: usize) -> String {
        let text = self.key.as_ref().map_or_else(|| text.to_owned(), |key| key.redact(text));
        let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c.is_control()).collect();
        let line = words.join(" ");
        match line.char_indices().nth(longest) {
            Some((cut, _)) => format!("{}...", &line[..cut]),
            None => line,
        }
    }
}

impl Unanswered {
    /// The reason at the bottom of a chain of errors: those above only say where it was noticed.
    fn new(error: &(dyn Error + 'static), connecting: bool) -> Self {
        let mut deepest = error;
        while let Some(source) = deepest.source() {
            deepest = source;
        }
        let io = deepest.downcast_ref::<io::Error>();
        let timed_out = io.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut);
        let tls = io.and_then(io::Error::get_ref).and_then(tls::explain);
        match (timed_out, connecting) {
            (true, true) => Self::TimedOut("connecting"),
            (true, false) => Self::TimedOut("on the network"),
            (false, true) => Self::CannotConnect(tls.unwrap_or_else(|| deepest.to_string())),
            (false, false) => Self::BrokenOff(deepest.to_string()),
        }
    }
}

impl Limits {
    fn new(settings: &TransportSettings<'_>) -> Result<Self, PluginError> {
        let timeouts = settings.timeouts;
        Ok(Self {
            connect: seconds("timeouts.connect_seconds", timeouts.connect_seconds)?,
            read: seconds("timeouts.read_seconds", timeouts.read_seconds)?,
            total: seconds("timeouts.total_seconds", timeouts.total_seconds)?,
        })
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

/// The headers of every request.
fn headers(
    settings: &TransportSettings<'_>,
    key: Option<&ApiKey>,
) -> Result<HeaderMap, PluginError> {
    let json = HeaderValue::from_static("application/json");
    let agent = HeaderValue::from_static(concat!("sppo/", env!("CARGO_PKG_VERSION")));
    let own = [(CONTENT_TYPE, json.clone()), (ACCEPT, json), (USER_AGENT, agent)];
    let mut headers = HeaderMap::from_iter(own);
    for (name, value) in plain_headers(settings)? {
        headers.insert(name, value);
    }
    if let Some((name, value)) = key.map(ApiKey::header) {
        headers.insert(name, value.clone());
    }
    Ok(headers)
}

fn too_large() -> Failure {
    let message = format!("the reply is larger than {} MiB", MAX_REPLY_BYTES >> 20);
    Failure { kind: FailureKind::Unreadable, message, retry_after: None }
}

/// A runtime whose tasks run on the thread that waits for them.
pub(crate) fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

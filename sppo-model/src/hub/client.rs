//! Requests to the hub and to the storage that it names, tried again where that may help.

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body, RequestBuilder, SendBody};

use super::access::{HubAccess, Token};
use super::error::{HubError, Result};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// A part is given up when it is sent more slowly than this, in bytes per second.
const SLOWEST: u64 = 50_000;
/// Longest answer that is read; an answer lists files.
const ANSWER_BYTES: u64 = 16 << 20;
const MAX_ATTEMPTS: u32 = 5;
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// Longest excerpt of what a server says.
const MESSAGE_CHARS: usize = 300;

/// The HTTP method of a request without a body, or with one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call<'a> {
    Get,
    /// A body and its media type.
    Post(&'a [u8], &'static str),
}

pub(super) const JSON: &str = "application/json";
pub(super) const LFS_JSON: &str = "application/vnd.git-lfs+json";
pub(super) const JSON_LINES: &str = "application/x-ndjson";

/// An answer to a request: its status, what it holds, and the validator of an uploaded part.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) etag: Option<String>,
    retry_after: Option<Duration>,
    body: Vec<u8>,
}

impl Answer {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether the same request may succeed a little later.
    fn is_passing(&self) -> bool {
        matches!(self.status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
    }

    /// The content as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self, doing: &'static str) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|_| HubError::Malformed(doing))
    }

    /// The server's own words about a failure: `error` or `message` of a JSON object. Other texts, such as the
    /// pages of proxies and the XML of storage, are left out.
    pub(super) fn message(&self) -> String {
        let document: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let text = ["error", "message"].iter().find_map(|key| document.get(key)?.as_str());
        let text = text.unwrap_or_default().trim().trim_end_matches('.');
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_CHARS).collect()
    }
}

/// A client of the hub. It asks one thing after the other.
pub(super) struct Client<'a> {
    pub(super) access: HubAccess,
    agent: Agent,
    is_cancelled: &'a dyn Fn() -> bool,
}

impl<'a> Client<'a> {
    pub(super) fn new(access: HubAccess, is_cancelled: &'a dyn Fn() -> bool) -> Self {
        let agent = Agent::config_builder()
            .user_agent(concat!("sppo/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT_LIMIT))
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_recv_response(Some(ANSWER_LIMIT))
            .timeout_recv_body(Some(ANSWER_LIMIT))
            .max_redirects(0)
            .http_status_as_error(false)
            .build()
            .into();
        Self { access, agent, is_cancelled }
    }

    /// Asks an address of the hub, given by its path, until there is an answer that will not change.
    pub(super) fn ask(&self, call: Call<'_>, path: &str) -> Result<Answer> {
        self.ask_at(call, &format!("{}{path}", self.access.endpoint))
    }

    /// As [`Self::ask`], once: for what must not be done twice, and to learn at once whether the hub is there.
    pub(super) fn ask_once(&self, call: Call<'_>, path: &str) -> Result<Answer> {
        self.attempt(call, &format!("{}{path}", self.access.endpoint))
    }

    /// As [`Self::ask`], at an address that the hub has given.
    pub(super) fn ask_at(&self, call: Call<'_>, url: &str) -> Result<Answer> {
        self.repeat(|| self.attempt(call, url))
    }

    /// Uploads bytes to an address that the hub has given. `open` opens them from their beginning, each time that
    /// they are sent.
    pub(super) fn put<'r>(
        &self,
        url: &str,
        headers: &[(String, String)],
        size: u64,
        open: &dyn Fn() -> Result<Box<dyn Read + 'r>>,
    ) -> Result<Answer> {
        let limit = ANSWER_LIMIT + Duration::from_secs(size / SLOWEST);
        self.repeat(|| {
            let mut request = self.agent.put(url).config().timeout_send_body(Some(limit)).build();
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let request = request.header("Content-Length", size.to_string());
            let mut content = open()?;
            self.answer(request.send(SendBody::from_reader(&mut content)))
        })
    }

    fn attempt(&self, call: Call<'_>, url: &str) -> Result<Answer> {
        let token = self.access.token.as_ref().filter(|_| self.access.is_own(url));
        let authorization = token.map(Token::header);
        let sent = match call {
            Call::Get => with_token(self.agent.get(url), authorization).call(),
            Call::Post(body, media_type) => {
                let request = self.agent.post(url).header("Content-Type", media_type);
                let accepted = if media_type == LFS_JSON { LFS_JSON } else { JSON };
                with_token(request.header("Accept", accepted), authorization).send(body)
            }
        };
        self.answer(sent)
    }

    fn answer(&self, sent: std::result::Result<Response<Body>, ureq::Error>) -> Result<Answer> {
        let mut response = sent.map_err(unreachable)?;
        let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let seconds = header("retry-after").and_then(|text| text.trim().parse().ok());
        let (etag, status) = (header("etag"), response.status().as_u16());
        let body = response.body_mut().with_config().limit(ANSWER_BYTES).read_to_vec();
        let body = body.map_err(unreachable)?;
        Ok(Answer { status, etag, retry_after: seconds.map(Duration::from_secs), body })
    }

    /// Repeats an attempt with growing pauses while it fails in a way that passes.
    fn repeat(&self, attempt: impl Fn() -> Result<Answer>) -> Result<Answer> {
        let mut delay = FIRST_DELAY;
        for _ in 1..MAX_ATTEMPTS {
            let wait = match attempt() {
                Ok(answer) if answer.is_passing() => answer.retry_after.unwrap_or(delay),
                Err(HubError::Unreachable(cause)) => {
                    tracing::debug!("the hub cannot be reached: {cause}");
                    delay
                }
                outcome => return outcome,
            };
            self.pause(wait.min(LONGEST_DELAY))?;
            delay *= 2;
        }
        attempt()
    }

    fn pause(&self, wait: Duration) -> Result<()> {
        const TICK: Duration = Duration::from_millis(50);
        let until = Instant::now() + wait;
        while Instant::now() < until {
            if (self.is_cancelled)() {
                return Err(HubError::Cancelled);
            }
            thread::sleep(TICK);
        }
        Ok(())
    }

    /// The error of an answer that is none of those that a caller knows what to do with.
    pub(super) fn refusal(
        &self,
        answer: &Answer,
        repository: &str,
        doing: &'static str,
    ) -> HubError {
        let message = match &self.access.token {
            Some(token) => token.redact(&answer.message()),
            None => answer.message(),
        };
        refused(answer.status, message, repository, doing)
    }
}

/// The error of a status; `message` is what the server says.
pub(super) fn refused(
    status: u16,
    message: String,
    repository: &str,
    doing: &'static str,
) -> HubError {
    match status {
        401 => HubError::WrongToken,
        402 | 403 => HubError::NoPermission { repository: repository.into(), reason: message },
        404 => HubError::NoSuchRepository(repository.into()),
        status => HubError::Refused { doing, status, message },
    }
}

fn with_token<T>(request: RequestBuilder<T>, authorization: Option<String>) -> RequestBuilder<T> {
    match authorization {
        Some(value) => request.header("Authorization", value),
        None => request,
    }
}

/// The body of a request.
pub(super) fn to_json(value: &impl Serialize) -> Vec<u8> {
    // Texts, numbers and lists have a JSON form.
    serde_json::to_vec(value).unwrap_or_default()
}

/// A failure without an answer. The address stays out: it may be signed.
pub(super) fn unreachable(error: ureq::Error) -> HubError {
    if let ureq::Error::Io(error) = &error
        && let Some(own) = error.get_ref().and_then(|inner| inner.downcast_ref::<SourceFailure>())
    {
        return own.to_error();
    }
    HubError::Unreachable(match error {
        ureq::Error::Timeout(_) => "it does not answer in time".into(),
        ureq::Error::HostNotFound => "its name cannot be resolved".into(),
        ureq::Error::BadUri(_) => "its address is malformed".into(),
        ureq::Error::ConnectionFailed => "the connection is refused".into(),
        ureq::Error::Io(error) => error.kind().to_string(),
        other => other.to_string(),
    })
}

/// A failure of the content that is sent, carried through the HTTP client.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceFailure {
    #[error("stopped on request")]
    Cancelled,
    #[error("{}: {cause}", path.display())]
    File { path: std::path::PathBuf, cause: std::io::ErrorKind },
}

impl SourceFailure {
    fn to_error(&self) -> HubError {
        match self {
            Self::Cancelled => HubError::Cancelled,
            Self::File { path, cause } => {
                HubError::File { path: path.clone(), cause: (*cause).into() }
            }
        }
    }
}

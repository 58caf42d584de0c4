//! The servers, asked one by one: each on a thread of its own, all at the same time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use sppo_http_transport::{Address, Direct, Malformed, Unserved, Verb};
use sppo_plugin::{PluginError, Progress};

use crate::config::ServerConfig;

/// Interval at which the caller is asked whether to stop.
const TICK: Duration = Duration::from_millis(20);

/// All servers.
pub(crate) struct Servers(Vec<Direct>);

/// A server while it is asked, by a caller that may want to stop.
#[derive(Clone, Copy)]
pub(crate) struct Server<'a> {
    direct: &'a Direct,
    is_cancelled: &'a AtomicBool,
}

impl Servers {
    pub(crate) fn new(config: &ServerConfig) -> Result<Self, PluginError> {
        let server = |base| Direct::new(&config.transport(), Address::parse(base, "/")?);
        config.bases().map(server).collect::<Result<_, _>>().map(Self)
    }

    /// Does the same with every server.
    pub(crate) fn each<T: Send>(
        &self,
        progress: &dyn Progress,
        act: impl Fn(Server<'_>) -> Result<T, PluginError> + Sync,
    ) -> Result<Vec<T>, PluginError> {
        let is_cancelled = AtomicBool::new(false);
        thread::scope(|scope| {
            let begin = |direct| {
                let server = Server { direct, is_cancelled: &is_cancelled };
                let act = &act;
                scope.spawn(move || act(server))
            };
            let acting: Vec<ScopedJoinHandle<'_, Result<T, PluginError>>> =
                self.0.iter().map(begin).collect();
            while acting.iter().any(|thread| !thread.is_finished()) {
                if progress.is_cancelled() {
                    is_cancelled.store(true, Ordering::Relaxed);
                }
                thread::sleep(TICK);
            }
            let joined = |thread: ScopedJoinHandle<'_, Result<T, PluginError>>| {
                let panicked = |_| Err(PluginError::failed("a thread panicked, which is a bug"));
                thread.join().unwrap_or_else(panicked)
            };
            acting.into_iter().map(joined).collect()
        })
    }

    pub(crate) fn shown(&self) -> Vec<&str> {
        self.0.iter().map(Direct::shown).collect()
    }
}

impl Server<'_> {
    /// The address, for people.
    pub(crate) fn shown(&self) -> &str {
        self.direct.shown()
    }

    pub(crate) fn get<T>(
        &self,
        path: &str,
        read: impl Fn(&[u8]) -> Result<T, Malformed>,
    ) -> Result<T, Unserved> {
        self.direct.ask(Verb::Get, path, b"", &read, &|| self.is_cancelled())
    }

    pub(crate) fn post<T>(
        &self,
        path: &str,
        body: &serde_json::Value,
        read: impl Fn(&[u8]) -> Result<T, Malformed>,
    ) -> Result<T, Unserved> {
        let body = body.to_string();
        self.direct.ask(Verb::Post, path, body.as_bytes(), &read, &|| self.is_cancelled())
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }

    /// The error of a request that was `doing` something.
    pub(crate) fn error(&self, doing: &str, unserved: Unserved, hint: &str) -> PluginError {
        let said = match unserved {
            Unserved::Cancelled => return PluginError::cancelled(),
            Unserved::Refused(refusal) => format!("{} {}", refusal.status, refusal.details),
            Unserved::Failed(said) => said,
        };
        PluginError::failed(format!("{} cannot {doing}: {}", self.shown(), said.trim()))
            .with_hint(hint)
    }
}

/// Takes any reply of success.
pub(crate) fn anything(_body: &[u8]) -> Result<(), Malformed> {
    Ok(())
}

/// Reads a reply as JSON of a known form.
pub(crate) fn json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Malformed> {
    serde_json::from_slice(body).map_err(|error| Malformed(error.to_string()))
}

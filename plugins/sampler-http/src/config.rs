//! The settings of a sampler, the table `[sampler.vllm]` or `[sampler.sglang]`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sppo_http_transport::{
    ConcurrencyConfig, KeyHeader, RetryConfig, TimeoutConfig, TransportSettings,
};
use sppo_plugin::PluginError;

/// The servers, the way in which they get weights, and the limits within which they are asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Base addresses of the servers, for instance `["http://localhost:8000"]`. Several share the work; all of them
    /// serve the model that is trained, and hold the same weights.
    pub endpoints: Vec<String>,
    /// The name under which the servers serve the model; where they serve one only, it need not be given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The way in which the servers get new weights.
    pub refresh: Refresh,
    /// A program with its arguments that makes the servers load new weights, in place of requests to them: for
    /// servers that can only be started again. `{checkpoint}` stands for the path of the weights as the servers
    /// see it, `{version}` for their name. The run goes on once all servers answer again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refresh_command: Vec<String>,
    /// Directories on this machine and the paths under which the servers see them, for servers with another mount:
    /// `{ "/home/me/runs" = "/mnt/runs" }`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub checkpoint_path_on_server: BTreeMap<String, String>,
    /// The environment variable that holds the key of the servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// The file that holds the key of the servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub api_key_file: Option<PathBuf>,
    /// The header that carries the key: `Authorization` sends `Bearer KEY`, any other the key alone.
    pub api_key_header: KeyHeader,
    /// Other headers. They are recorded with the run: no place for secrets.
    pub headers: BTreeMap<String, String>,
    /// A file with the certificates (PEM) to trust in place of the public ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub certificates: Option<PathBuf>,
    /// Requests at the same time.
    pub concurrency: ConcurrencyConfig,
    /// Time limits.
    pub timeouts: TimeoutConfig,
    /// Reaction to failures.
    pub retries: RetryConfig,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            model: None,
            refresh: Refresh::default(),
            refresh_command: Vec::new(),
            checkpoint_path_on_server: BTreeMap::new(),
            api_key_env: None,
            api_key_file: None,
            api_key_header: KeyHeader::default(),
            headers: BTreeMap::new(),
            certificates: None,
            concurrency: ConcurrencyConfig { max: 256, start: 64 },
            // A response arrives as a whole, after all of its tokens were drawn.
            timeouts: TimeoutConfig {
                read_seconds: 600.0,
                total_seconds: 900.0,
                ..TimeoutConfig::default()
            },
            retries: RetryConfig::default(),
        }
    }
}

/// A way in which servers get new weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Refresh {
    /// They load the checkpoint from disk: a whole one in place of their weights, low-rank adapters beside them.
    #[default]
    Load,
    /// They are never given weights: for `generate`, `eval` and `chat` with servers that must stay as they are.
    Never,
}

impl ServerConfig {
    /// The settings that the transport takes.
    pub(crate) fn transport(&self) -> TransportSettings<'_> {
        TransportSettings {
            api_key_env: self.api_key_env.as_deref(),
            api_key_file: self.api_key_file.as_deref(),
            api_key_header: &self.api_key_header,
            headers: &self.headers,
            certificates: self.certificates.as_deref(),
            concurrency: &self.concurrency,
            timeouts: &self.timeouts,
            retries: &self.retries,
        }
    }

    /// Base addresses of the servers, to which paths are added.
    pub(crate) fn bases(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().map(|endpoint| {
            let base = endpoint.trim().trim_end_matches('/');
            base.strip_suffix("/v1").unwrap_or(base)
        })
    }

    pub(crate) fn check(&self) -> Result<(), PluginError> {
        if self.endpoints.is_empty() {
            return Err(PluginError::configuration(
                "endpoints: it is not said where the servers are",
            )
            .with_hint(
                "for instance `--set 'sampler.vllm.endpoints=[\"http://localhost:8000\"]'`",
            ));
        }
        if self.endpoints.iter().any(|endpoint| endpoint.contains('?')) {
            return Err(PluginError::configuration("endpoints: an address has a query")
                .with_hint("give base addresses such as `http://localhost:8000`"));
        }
        if self.refresh == Refresh::Never && !self.refresh_command.is_empty() {
            return Err(PluginError::configuration(
                "`refresh_command` is given, and `refresh = \"never\"` does not use it",
            )
            .with_hint("leave one of them out"));
        }
        self.transport().check()
    }

    /// A path of this machine as the servers see it, by the longest directory that is mapped.
    pub(crate) fn path_on_server(&self, path: &Path) -> Result<String, PluginError> {
        let path = std::path::absolute(path)
            .map_err(|error| PluginError::input(format!("{}: {error}", path.display())))?;
        let mapped = self.checkpoint_path_on_server.iter().filter_map(|(here, there)| {
            let rest = path.strip_prefix(here).ok()?;
            Some((here.len(), Path::new(there).join(rest)))
        });
        let longest = mapped.max_by_key(|(length, _)| *length);
        let on_server = longest.map_or(path, |(_, path)| path);
        on_server.to_str().map(String::from).ok_or_else(|| {
            PluginError::input(format!("{} is not UTF-8", on_server.display()))
                .with_hint("choose another --run-directory")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_mapped_by_the_longest_directory() {
        let mapped = [("/runs", "/mnt/a"), ("/runs/mine", "/mnt/b")];
        let config = ServerConfig {
            checkpoint_path_on_server: mapped
                .map(|(here, there)| (here.to_owned(), there.to_owned()))
                .into(),
            ..ServerConfig::default()
        };
        let on_server = |path: &str| config.path_on_server(Path::new(path)).unwrap();
        assert_eq!(on_server("/runs/mine/iteration-1"), "/mnt/b/iteration-1");
        assert_eq!(on_server("/runs/other"), "/mnt/a/other");
        assert_eq!(on_server("/runs-elsewhere/x"), "/runs-elsewhere/x");
    }
}

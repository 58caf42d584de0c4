//! Requests and replies of each kind of server.

mod sglang;
mod vllm;

use sha2::{Digest, Sha256};
use sppo_http_transport::{Malformed, Reason, Refusal, Unserved};
use sppo_plugin::{
    FinishReason, GeneratedResponse, GenerationRequest, PluginError, SamplingParameters,
};

use crate::servers::Server;

pub(crate) use sglang::SglangProtocol;
pub(crate) use vllm::VllmProtocol;

/// A kind of server.
pub(crate) trait Protocol: Send + Sync + 'static {
    /// Path of the requests for responses.
    fn path(&self) -> &'static str;

    /// Request for one response.
    fn request(&self, ask: &Ask<'_>) -> serde_json::Value;

    /// Reads the response.
    fn response(&self, body: &[u8], limits: &Limits<'_>) -> Result<GeneratedResponse, Malformed>;

    /// Request for the log-probability of every token of a sequence.
    fn scoring(&self, served: &Served, tokens: &[u32]) -> serde_json::Value;

    /// Reads the log-probabilities of all tokens but the first.
    fn scores(&self, body: &[u8], tokens: &[u32]) -> Result<Vec<f32>, Malformed>;

    /// Number format of a server's computation, if it says.
    fn number_format(&self, server: Server<'_>) -> Result<Option<String>, PluginError>;

    /// Finds out whether a server can be made to load a whole model.
    fn require_loading(&self, server: Server<'_>) -> Result<(), PluginError>;

    /// Finds out whether a server can be made to load low-rank adapters.
    fn require_adapters(&self, server: Server<'_>) -> Result<(), PluginError>;

    /// Whether the server reloads a model whose head is tied to its embeddings without the head.
    fn loses_tied_heads(&self) -> bool;

    /// Makes a server load a whole model in place of its weights.
    fn load_model(&self, server: Server<'_>, load: &Load<'_>) -> Result<(), PluginError>;

    /// Makes a server load low-rank adapters under a name that it did not know.
    fn load_adapter(&self, server: Server<'_>, load: &Load<'_>) -> Result<(), PluginError>;

    /// Makes a server forget adapters; it may not know them.
    fn unload_adapter(&self, server: Server<'_>, name: &str) -> Result<(), PluginError>;

    /// Command line that starts such a server, for advice.
    fn start_command(&self, model: &str) -> String;
}

/// Weights as requests name them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Served {
    /// The name of the model.
    pub(crate) model: String,
    /// The name of adapters that are used on it.
    pub(crate) adapter: Option<String>,
    /// The version of the weights.
    pub(crate) version: String,
    /// Whether the servers were told the version, so that their replies name it.
    pub(crate) says_version: bool,
}

/// Weights to load.
pub(crate) struct Load<'a> {
    /// Their path on the server's machine.
    pub(crate) path: &'a str,
    /// Their version, or the name of the adapters.
    pub(crate) name: &'a str,
}

/// A response to be asked for.
pub(crate) struct Ask<'a> {
    pub(crate) served: &'a Served,
    pub(crate) prompt: &'a [u32],
    pub(crate) sampling: &'a SamplingParameters,
    /// Longest response that the context holds.
    pub(crate) max_tokens: usize,
    pub(crate) seed: u32,
    pub(crate) stop_tokens: &'a [u32],
}

/// Bounds of a response.
pub(crate) struct Limits<'a> {
    pub(crate) max_tokens: usize,
    pub(crate) stop_tokens: &'a [u32],
    pub(crate) vocabulary_size: usize,
    /// The version of weights that a reply must name, if it names one.
    pub(crate) version: Option<&'a str>,
}

/// Seed of one response, from 0 to below 2^31, which every server takes.
pub(crate) fn seed(request: &GenerationRequest, prompt: u64, sample: usize) -> u32 {
    let mut hash = Sha256::new();
    for part in [request.seed, request.stream, prompt, sample as u64] {
        hash.update(part.to_le_bytes());
    }
    let digest: [u8; 32] = hash.finalize().into();
    u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]) >> 1
}

impl Limits<'_> {
    /// A response, if it is one that was asked for.
    fn checked(
        &self,
        tokens: Vec<u32>,
        log_probs: Vec<f32>,
        finish: &str,
    ) -> Result<GeneratedResponse, Malformed> {
        let refused = |reason: String| Err(Malformed(reason));
        if tokens.is_empty() || tokens.len() > self.max_tokens {
            return refused(format!(
                "{} tokens, at most {} were asked for",
                tokens.len(),
                self.max_tokens
            ));
        }
        if tokens.len() != log_probs.len() {
            return refused(format!(
                "{} tokens and {} log-probabilities",
                tokens.len(),
                log_probs.len()
            ));
        }
        if let Some(token) = tokens.iter().find(|token| **token as usize >= self.vocabulary_size) {
            return refused(format!(
                "token {token} is not in the vocabulary: it serves another model"
            ));
        }
        let ends = tokens.last().is_some_and(|last| self.stop_tokens.contains(last));
        let finish_reason = match (finish, ends) {
            ("stop", true) => FinishReason::Stop,
            ("stop", false) => {
                return refused(format!(
                    "it ended after token {:?}, which ends nothing here",
                    tokens.last()
                ));
            }
            ("length", _) if tokens.len() == self.max_tokens => FinishReason::Length,
            ("length", _) => return refused(format!("it was cut after {} tokens", tokens.len())),
            (other, _) => return refused(format!("it ended for the reason `{other}`")),
        };
        Ok(GeneratedResponse { tokens, log_probs, finish_reason })
    }

    /// Refuses a reply from weights of another version.
    fn check_version(&self, said: Option<&str>) -> Result<(), Malformed> {
        match (self.version, said) {
            (Some(expected), Some(said)) if said != expected => {
                Err(Malformed(format!("it came from the weights `{said}`, not `{expected}`")))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a server refused a request because it knows no such path.
fn is_unknown(unserved: &Unserved) -> bool {
    matches!(
        unserved,
        Unserved::Refused(Refusal { status: 404 | 405, reason: Reason::Request, .. })
    )
}

/// As the program writes number formats.
fn plain_format(name: &str) -> Option<String> {
    let name = name.rsplit('.').next().unwrap_or_default();
    match name {
        "float32" | "float" => Some("f32".into()),
        "bfloat16" => Some("bf16".into()),
        "float16" | "half" => Some("f16".into()),
        "" | "auto" => None,
        other => Some(other.into()),
    }
}

//! The settings of the oracle, the table `[oracle.http]`; each file holds one of its tables.

mod decision;
mod genrm;
mod groupwise;
mod judge;
mod rubric;
mod scoring;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sppo_http_transport::{
    ConcurrencyConfig, KeyHeader, RetryConfig, TimeoutConfig, TransportSettings,
};
use sppo_plugin::pairwise::Orders;

use crate::question::Tables;

pub use decision::{DecisionConfig, Scope};
pub use genrm::GenrmConfig;
pub use groupwise::GroupwiseConfig;
pub use judge::{JudgeConfig, Undecided};
pub use rubric::{RubricConfig, RubricJudge};
pub use scoring::ScoringConfig;

/// The service to ask, its protocol, and the limits within which it is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// The protocol that the service speaks.
    pub protocol: ProtocolName,
    /// Addresses of the service; several of the same service share the work. An address without a path
    /// gets the protocol's own, one that ends in a version such as `/v1` the rest of it, and so does, for
    /// chat models, every base address that clients complete. Any other is used as it stands.
    pub endpoints: Vec<String>,
    /// The model to ask for; some services do without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The identity of the judge, for the run's record and for the cache of its judgments. Model and
    /// endpoints when left out. Give it when the same judge moves to another address, so that its
    /// judgments stay valid, or when another judge answers under the same name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The environment variable that holds the key of the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// The file that holds the key of the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub api_key_file: Option<PathBuf>,
    /// The header that carries the key: `Authorization` sends `Bearer KEY`, any other the key alone.
    pub api_key_header: KeyHeader,
    /// Other headers. They are recorded with the run: no place for secrets.
    pub headers: BTreeMap<String, String>,
    /// Fields that are added to the body of every request, for instance `{ truncate = true }`.
    pub extra: Map<String, Value>,
    /// Fields that are left out of every request, for services that refuse them, for instance
    /// `["temperature"]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub leave_out: Vec<String>,
    /// The orders in which each pair is shown, for the protocols that compare.
    pub orders: Orders,
    /// Questions in one request, at most; 0 stands for a number that suits the protocol. Chat models, decisions on
    /// one pair, and `vllm-classify` without a template are always asked one, and `openai-groupwise` and
    /// `nemo-gym-compare` about all answers to a prompt.
    pub questions_per_request: usize,
    /// A file with the certificates (PEM) to trust in place of the public ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub certificates: Option<PathBuf>,
    /// Questions of `openai-judge`, and the way its replies are read. What it says of invalid verdicts holds for
    /// every protocol.
    pub judge: JudgeConfig,
    /// Texts for reward models.
    pub scoring: ScoringConfig,
    /// Questions of `systemone` and `openai-decisions`.
    pub decision: DecisionConfig,
    /// Questions of `nvidia-genrm`; of `nemo-gym-compare` only its principle counts.
    pub genrm: GenrmConfig,
    /// Criteria of `openai-rubric`.
    pub rubric: RubricConfig,
    /// Questions of `openai-groupwise`.
    pub groupwise: GroupwiseConfig,
    /// Requests at the same time.
    pub concurrency: ConcurrencyConfig,
    /// Time limits.
    pub timeouts: TimeoutConfig,
    /// Reaction to failures.
    pub retries: RetryConfig,
    /// The largest share of the prompts so far, from 0 to 1, with questions that the service refuses (too long, filtered)
    /// while it answers others. Such answers count as equal, and each prompt is named. Above 0 it allows one
    /// prompt at least; with 0, or beyond the share, the run stops.
    pub max_refused_share: f64,
    /// The file that remembers judgments.
    pub cache: CacheConfig,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            protocol: ProtocolName::default(),
            endpoints: Vec::new(),
            model: None,
            identity: None,
            api_key_env: None,
            api_key_file: None,
            api_key_header: KeyHeader::default(),
            headers: BTreeMap::new(),
            extra: Map::new(),
            leave_out: Vec::new(),
            orders: Orders::default(),
            questions_per_request: 0,
            certificates: None,
            judge: JudgeConfig::default(),
            scoring: ScoringConfig::default(),
            decision: DecisionConfig::default(),
            genrm: GenrmConfig::default(),
            rubric: RubricConfig::default(),
            groupwise: GroupwiseConfig::default(),
            concurrency: ConcurrencyConfig::default(),
            timeouts: TimeoutConfig::default(),
            retries: RetryConfig::default(),
            max_refused_share: 0.01,
            cache: CacheConfig::default(),
        }
    }
}

impl HttpConfig {
    /// Whether the service is a chat API.
    pub(crate) fn asks_chat(&self) -> bool {
        match self.protocol {
            ProtocolName::OpenaiJudge
            | ProtocolName::NvidiaGenrm
            | ProtocolName::OpenaiGroupwise => true,
            ProtocolName::OpenaiRubric => self.rubric.ask == RubricJudge::Chat,
            _ => false,
        }
    }

    /// Whether the service makes decisions.
    pub(crate) fn asks_decisions(&self) -> bool {
        match self.protocol {
            ProtocolName::Systemone | ProtocolName::OpenaiDecisions => true,
            ProtocolName::OpenaiRubric => self.rubric.ask != RubricJudge::Chat,
            _ => false,
        }
    }

    /// The tables that the protocol reads, for messages.
    pub(crate) fn tables(&self) -> Tables {
        let (questions, replies, max_tokens) = match self.protocol {
            ProtocolName::NvidiaGenrm | ProtocolName::NemoGymCompare => {
                ("genrm", "genrm", self.genrm.max_tokens)
            }
            ProtocolName::OpenaiGroupwise => ("groupwise", "groupwise", self.groupwise.max_tokens),
            ProtocolName::OpenaiRubric => ("rubric", "judge", self.judge.max_tokens),
            ProtocolName::Systemone | ProtocolName::OpenaiDecisions => {
                ("decision", "judge", self.judge.max_tokens)
            }
            _ => ("judge", "judge", self.judge.max_tokens),
        };
        Tables { questions, replies, max_tokens }
    }

    /// Whether a reply of the service may hold no verdict.
    pub(crate) fn may_be_invalid(&self) -> bool {
        let compares_groups = self.protocol == ProtocolName::NemoGymCompare;
        self.asks_chat() || self.asks_decisions() || compares_groups
    }

    /// Whether the service answers nobody who does not name a model.
    pub(crate) fn needs_model(&self) -> bool {
        let by_decisions = self.protocol == ProtocolName::OpenaiRubric
            && self.rubric.ask == RubricJudge::OpenaiDecisions;
        self.asks_chat() || by_decisions || self.protocol == ProtocolName::OpenaiDecisions
    }

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
}

/// A protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProtocolName {
    /// The small JSON protocol of sppo's own, for a service that compares two answers.
    #[default]
    Pairwise,
    /// A language model behind an OpenAI-compatible `/v1/chat/completions`, asked which of two answers is
    /// better.
    OpenaiJudge,
    /// A decision model behind `/v1/systemone` (TypeSafe, vLLM, SGLang, Ollama, gateways), asked which of two answers
    /// is better.
    Systemone,
    /// A decision model behind OpenAI's `/v1/decisions`, which vLLM speaks too, asked the same.
    OpenaiDecisions,
    /// NVIDIA's generative reward model behind vLLM's `/v1/chat/completions`, which ranks two answers.
    NvidiaGenrm,
    /// A language or decision model that is asked which criteria of a file each answer meets.
    OpenaiRubric,
    /// A language model behind `/v1/chat/completions` that scores all answers to a prompt at once.
    OpenaiGroupwise,
    /// A server `genrm_compare` of NeMo Gym behind `/compare`, which scores all answers to a prompt at once.
    NemoGymCompare,
    /// A remote reward model of OpenRLHF.
    Openrlhf,
    /// A reward or classification model behind vLLM's `/classify`.
    VllmClassify,
    /// A cross-encoder or reward model behind vLLM's `/v1/score`.
    VllmScore,
    /// A classification model behind `/predict` of text-embeddings-inference.
    TeiPredict,
    /// A re-ranker behind `/rerank` of text-embeddings-inference.
    TeiRerank,
}

impl ProtocolName {
    /// The name as it stands in a configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pairwise => "pairwise",
            Self::OpenaiJudge => "openai-judge",
            Self::Systemone => "systemone",
            Self::OpenaiDecisions => "openai-decisions",
            Self::NvidiaGenrm => "nvidia-genrm",
            Self::OpenaiRubric => "openai-rubric",
            Self::OpenaiGroupwise => "openai-groupwise",
            Self::NemoGymCompare => "nemo-gym-compare",
            Self::Openrlhf => "openrlhf",
            Self::VllmClassify => "vllm-classify",
            Self::VllmScore => "vllm-score",
            Self::TeiPredict => "tei-predict",
            Self::TeiRerank => "tei-rerank",
        }
    }
}

/// Every judgment is appended to a file before it is used, so that none is asked for twice: not after a
/// crash, and not in another run with the same judge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Remember judgments on disk.
    pub enabled: bool,
    /// The directory for it; `sppo/oracle-http` in the user's cache directory when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub directory: Option<PathBuf>,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { enabled: true, directory: None }
    }
}

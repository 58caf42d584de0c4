//! Messages between the ranks of a team.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sppo_plugin::{
    GeneratedResponse, GenerationRequest, GradientDtype, LoraSettings, Optimizer, PluginError,
    PluginErrorKind, SequenceBatch, Sharding, StepReport, StepSettings,
};

use crate::decoder::DecoderConfig;
use crate::serve::scorer::ScorerConfig;

/// The number by which all ranks know a model.
pub(super) type Handle = u64;

/// An order of rank 0. Of several batches, rank `i` takes batch `i`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Command {
    LoadPolicy(Handle, #[serde(with = "as_json")] Box<PolicyPlan>),
    LoadScorer(Handle, #[serde(with = "as_json")] Box<ScorerPlan>),
    Drop(Handle),
    Generate(Handle, Vec<GenerationRequest>),
    TokenLogProbs(Handle, Vec<SequenceBatch>),
    NextTokenLogProbs(Handle, Vec<Vec<Vec<u32>>>, Vec<u32>),
    Forward(Handle, Vec<SequenceBatch>),
    Backward(Handle, Vec<Vec<f64>>),
    BeginTraining(Handle, Optimizer),
    EndTraining(Handle),
    Step(Handle, StepSettings),
    LoadOptimizerState(Handle),
    /// A weight by its place among all of the model, for rank 0 to have whole.
    Gather(Handle, usize, Gathered),
    Hash(Handle),
    Score(Handle, Vec<Vec<Vec<u32>>>),
    Leave,
}

/// What rank 0 wants to have of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Gathered {
    Values,
    OptimizerState,
}

/// A policy to hold, but for its weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PolicyPlan {
    pub(super) config: DecoderConfig,
    pub(super) adapters: Option<Adapters>,
    pub(super) recompute_activations: bool,
    pub(super) sharding: Sharding,
    pub(super) gradient_dtype: GradientDtype,
    pub(super) stop_tokens: Vec<u32>,
}

/// Settings of adapters with their seed, which files do not hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Adapters {
    settings: LoraSettings,
    seed: u64,
}

impl Adapters {
    pub(super) fn of(settings: &LoraSettings) -> Self {
        Self { settings: settings.clone(), seed: settings.seed }
    }

    pub(super) fn settings(&self) -> LoraSettings {
        LoraSettings { seed: self.seed, ..self.settings.clone() }
    }
}

/// A scorer to hold, but for the values of its weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ScorerPlan {
    pub(super) config: ScorerConfig,
    /// Names and shapes of the stored weights.
    pub(super) shapes: Vec<(String, Vec<usize>)>,
}

/// What a rank's part of a command gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Done,
    /// The device of a model that was loaded.
    Loaded(String),
    Responses(Vec<GeneratedResponse>),
    TokenLogProbs(Vec<Vec<f32>>),
    LogProbs(Vec<f64>),
    Scores(Vec<f32>),
    Step(StepReport),
    /// Of the trained weights that the rank computes with.
    Hash(u64),
}

/// The end of a command on one rank.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) result: Result<Reply, Failure>,
    /// Time that the rank computed, exchanges with others left out.
    pub(super) seconds: f64,
}

/// An error on its way to the other ranks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    kind: PluginErrorKind,
    message: String,
    hint: Option<String>,
}

impl From<PluginError> for Failure {
    fn from(error: PluginError) -> Self {
        Self { kind: error.kind, message: error.message, hint: error.hint }
    }
}

impl Failure {
    /// The error, of another rank if it has a name.
    pub(super) fn into_error(self, rank: Option<String>) -> PluginError {
        let message = match rank {
            Some(rank) => format!("{rank}: {}", self.message),
            None => self.message,
        };
        let mut error = PluginError::new(self.kind, message);
        error.hint = self.hint;
        error
    }
}

// Messages are coded by functions that are not generic, which are compiled here and not again for every backend.
impl Command {
    pub(super) fn encode(&self) -> Result<Vec<u8>, PluginError> {
        encode(self)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, PluginError> {
        decode(bytes)
    }
}

impl Outcome {
    pub(super) fn encode(&self) -> Result<Vec<u8>, PluginError> {
        encode(self)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, PluginError> {
        decode(bytes)
    }
}

/// Configurations as JSON, which they are read from anyway: their many fields need no code for MessagePack.
mod as_json {
    use serde::de::{DeserializeOwned, Error as _};
    use serde::ser::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let text = serde_json::to_string(value).map_err(S::Error::custom)?;
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        let text = String::deserialize(deserializer)?;
        serde_json::from_str(&text).map_err(D::Error::custom)
    }
}

/// Bytes of a message.
pub(super) fn encode(message: &impl Serialize) -> Result<Vec<u8>, PluginError> {
    rmp_serde::to_vec_named(message)
        .map_err(|error| PluginError::failed(format!("a message to the team: {error}")))
}

/// The message in these bytes.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, PluginError> {
    rmp_serde::from_slice(bytes).map_err(|error| {
        PluginError::failed(format!("a message of the team cannot be read: {error}"))
            .with_hint("all ranks must run the same build of sppo and of its plugin")
    })
}

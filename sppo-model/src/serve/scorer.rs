//! The adapter that turns any op set with the ops of encoders into a core [`Scorer`].

use std::path::Path;

use serde::{Deserialize, Serialize};
use sppo_plugin::{PluginError, Scorer};

use crate::decoder::{DecoderClassifier, GeneralPreferenceConfig};
use crate::encoder::{PairRanker, PairRankerConfig, RewardModel, RewardModelConfig, architectures};
use crate::error::{ModelError, Result};
use crate::formats::json::read_config;
use crate::formats::safetensors::SafetensorsFiles;
use crate::formats::weight_names::NamedWeights;
use crate::formats::{JsonObject, WeightFile};
use crate::ops::encoder::EncoderOps;

/// PairRM under `architectures` in `config.json`.
const PAIR_RANKER: &str = "DebertaV2PairRM";

/// Meaning of a model's scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScorerKind {
    /// A sequence shows two candidates, and its score is the logit that the first is better.
    PairRanker,
    /// A sequence shows one answer, and its score is how good that is.
    RewardModel,
    /// A sequence shows one answer, and its numbers are a vector that is compared with those of others; see
    /// [`GeneralPreferenceConfig`].
    GeneralPreference,
}

impl ScorerKind {
    /// Reads the `config.json` of a model directory, and the names of its weights.
    ///
    /// # Errors
    /// When it cannot be read, or the model is of no such kind.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join("config.json");
        let json = read_config(&path)?;
        let settings = JsonObject::of(&json, &path)?;
        let named = settings.texts("architectures")?.unwrap_or_default();
        let architecture = named.first().copied().unwrap_or("that is not named");
        if settings.get("ranker_type").is_some() || architecture == PAIR_RANKER {
            return Ok(Self::PairRanker);
        }
        if GeneralPreferenceConfig::is_in(directory) {
            return Ok(Self::GeneralPreference);
        }
        if architectures().any(|supported| supported == architecture) {
            return Ok(Self::RewardModel);
        }
        let supported: Vec<_> = architectures().collect();
        Err(ModelError::Unsupported(format!(
            "{}: the architecture {architecture} cannot score text here; supported: {}, {PAIR_RANKER}, \
             the pairranker of LLM-Blender, and General Preference Models",
            path.display(),
            supported.join(", ")
        )))
    }
}

/// Loads a model directory of either kind.
///
/// # Errors
/// When it cannot be read, is of another kind, or does not fit into memory.
pub fn load_scorer<O: EncoderOps>(ops: O, directory: &Path) -> Result<Box<dyn Scorer>> {
    let load = || {
        let files = SafetensorsFiles::open(directory)?;
        let config = ScorerConfig::read(directory, &files)?;
        Ok((config.load(&ops, &files)?, config.width()))
    };
    let (model, width) = load().map_err(|error| of_directory(error, directory))?;
    Ok(Box::new(LocalScorer { ops, model, width }))
}

/// Names the directory in an error about what it holds.
pub(super) fn of_directory(error: ModelError, directory: &Path) -> ModelError {
    match error {
        ModelError::Input(message) => ModelError::file(directory, message)
            .with_hint("the configuration and the weights do not belong together"),
        other => other,
    }
}

/// The shape of a model that scores.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum ScorerConfig {
    PairRanker(PairRankerConfig),
    RewardModel(RewardModelConfig),
    GeneralPreference(GeneralPreferenceConfig),
}

impl ScorerConfig {
    /// Numbers per sequence.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::PairRanker(_) | Self::RewardModel(_) => 1,
            Self::GeneralPreference(config) => config.width(),
        }
    }

    pub(super) fn read(directory: &Path, files: &dyn WeightFile) -> Result<Self> {
        Ok(match ScorerKind::read(directory)? {
            ScorerKind::PairRanker => {
                let files = NamedWeights::unwrapped(files)?;
                Self::PairRanker(PairRankerConfig::read(directory, &files)?)
            }
            ScorerKind::RewardModel => Self::RewardModel(RewardModelConfig::read(directory)?),
            ScorerKind::GeneralPreference => {
                Self::GeneralPreference(GeneralPreferenceConfig::read(directory)?)
            }
        })
    }

    pub(super) fn load<O: EncoderOps>(
        &self,
        ops: &O,
        files: &dyn WeightFile,
    ) -> Result<LoadedScorer<O>> {
        Ok(match self {
            Self::PairRanker(config) => {
                LoadedScorer::PairRanker(PairRanker::with_weights(ops, config.clone(), files)?)
            }
            Self::RewardModel(config) => {
                LoadedScorer::RewardModel(RewardModel::with_weights(ops, config, files)?)
            }
            Self::GeneralPreference(config) => {
                LoadedScorer::GeneralPreference(config.load(ops, files)?)
            }
        })
    }
}

/// A model that scores, with its weights on an op set.
pub(super) enum LoadedScorer<O: EncoderOps> {
    PairRanker(PairRanker<O>),
    RewardModel(RewardModel<O>),
    GeneralPreference(DecoderClassifier<O>),
}

impl<O: EncoderOps> LoadedScorer<O> {
    pub(super) fn score(&self, ops: &O, sequences: &[Vec<u32>]) -> Result<Vec<f32>> {
        match self {
            Self::PairRanker(ranker) => ranker.logits(ops, sequences),
            Self::RewardModel(model) => model.scores(ops, sequences),
            Self::GeneralPreference(model) => model.scores(ops, sequences),
        }
    }
}

/// A scorer in this process.
struct LocalScorer<O: EncoderOps> {
    ops: O,
    model: LoadedScorer<O>,
    width: usize,
}

impl<O: EncoderOps> Scorer for LocalScorer<O> {
    fn width(&self) -> usize {
        self.width
    }

    fn score(&mut self, sequences: &[Vec<u32>]) -> std::result::Result<Vec<f32>, PluginError> {
        Ok(self.model.score(&self.ops, sequences)?)
    }
}

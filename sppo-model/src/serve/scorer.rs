//! The adapter that turns any op set with the ops of encoders into a core [`Scorer`].

use std::path::Path;

use sppo_plugin::{PluginError, Scorer};

use crate::encoder::{PairRanker, RewardModel, architectures};
use crate::error::{ModelError, Result};
use crate::formats::JsonObject;
use crate::formats::json::read_config;
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
}

impl ScorerKind {
    /// Reads the `config.json` of a model directory.
    ///
    /// # Errors
    /// When it cannot be read, or the model is of neither kind.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join("config.json");
        let json = read_config(&path)?;
        let settings = JsonObject::of(&json, &path)?;
        let named = settings.texts("architectures")?.unwrap_or_default();
        let architecture = named.first().copied().unwrap_or("that is not named");
        if settings.get("ranker_type").is_some() || architecture == PAIR_RANKER {
            return Ok(Self::PairRanker);
        }
        if architectures().any(|supported| supported == architecture) {
            return Ok(Self::RewardModel);
        }
        let supported: Vec<_> = architectures().collect();
        Err(ModelError::Unsupported(format!(
            "{}: the architecture {architecture} cannot score text here; supported: {}, {PAIR_RANKER}, \
             and the pairranker of LLM-Blender",
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
    load(ops, directory).map_err(|error| match error {
        ModelError::Input(message) => ModelError::file(directory, message)
            .with_hint("the configuration and the weights do not belong together"),
        other => other,
    })
}

fn load<O: EncoderOps>(ops: O, directory: &Path) -> Result<Box<dyn Scorer>> {
    Ok(match ScorerKind::read(directory)? {
        ScorerKind::PairRanker => {
            let ranker = PairRanker::load(&ops, directory)?;
            Box::new(ScoreWith(move |sequences: &[Vec<u32>]| ranker.logits(&ops, sequences)))
        }
        ScorerKind::RewardModel => {
            let model = RewardModel::load(&ops, directory)?;
            Box::new(ScoreWith(move |sequences: &[Vec<u32>]| model.scores(&ops, sequences)))
        }
    })
}

/// A function as a scorer.
struct ScoreWith<F>(F);

impl<F: Fn(&[Vec<u32>]) -> Result<Vec<f32>>> Scorer for ScoreWith<F> {
    fn score(&mut self, sequences: &[Vec<u32>]) -> std::result::Result<Vec<f32>, PluginError> {
        Ok((self.0)(sequences)?)
    }
}

//! The oracle and its settings: it finds the reward model, has every response scored, and returns the
//! scores.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::Deserialize;
use sppo_model::serve::judge::{JudgeSettings, MetricNames, ModelJudge, PreparedJudge};
use sppo_plugin::{Comparison, Oracle, Plugin, PluginError, Progress, Services, Verdict};

use crate::general_preference::GeneralPreferenceSettings;
use crate::sequence::{LEAST_TOKENS, SequenceBuilder};

const METRICS: MetricNames = ["answers", "answers_per_second", "reward_tokens"];

/// The reward model that judges, its backend, and the most tokens that it sees.
///
/// Scores become probabilities with `preference.bradley_terry_temperature`.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RewardConfig {
    /// A directory, or a model on the Hugging Face hub. It must be set. The model is a sequence
    /// classifier of transformers with one label: `DebertaV2ForSequenceClassification`, or that of a
    /// decoder, for instance `LlamaForSequenceClassification`; or a General Preference Model, a decoder with
    /// a `value_head`.
    #[schemars(extend("format" = "model"))]
    pub model: String,
    /// A branch, tag or commit of the model on the hub; its main branch when left out.
    pub revision: Option<String>,
    /// The backend that the model computes on, with its own settings; the run's when left out.
    pub backend: Option<String>,
    /// Most tokens of a conversation with its answer; the model's own limit (`max_position_embeddings`)
    /// when left out. Longer ones lose their beginning, so that the answer is kept.
    pub maximum_tokens: Option<usize>,
    /// Tokens that are computed together, at most, unless one answer has more. It changes memory and
    /// speed, not the result.
    pub batch_tokens: usize,
    /// Conventions of General Preference Models.
    pub general_preference: GeneralPreferenceSettings,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            revision: None,
            backend: None,
            maximum_tokens: None,
            batch_tokens: 2048,
            general_preference: GeneralPreferenceSettings::default(),
        }
    }
}

/// Judges responses with a reward model.
pub struct RewardOracle {
    config: RewardConfig,
    model: PreparedJudge<SequenceBuilder>,
}

impl Plugin for RewardOracle {
    type Config = RewardConfig;
    const NAME: &'static str = "reward";
    const SUMMARY: &'static str = "A reward model that scores each answer, on the run's backend";

    fn create(config: RewardConfig) -> Result<Self, PluginError> {
        settings(&config).check("Skywork/Skywork-Reward-V2-Qwen3-0.6B")?;
        config.general_preference.check()?;
        match config.maximum_tokens {
            Some(tokens) if tokens < LEAST_TOKENS => Err(PluginError::configuration(format!(
                "maximum_tokens: {tokens} leave no room for an answer"
            ))
            .with_hint("leave it out, or set it to some hundreds")),
            _ => Ok(Self { config, model: PreparedJudge::default() }),
        }
    }
}

impl Oracle for RewardOracle {
    fn prepare(
        &mut self,
        services: &dyn Services,
        progress: &dyn Progress,
    ) -> Result<(), PluginError> {
        self.model.prepare(|| load(&self.config, services, progress))
    }

    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        progress: &dyn Progress,
    ) -> Result<Vec<Verdict>, PluginError> {
        let (builder, judge) = self.model.get()?;
        let width = judge.width();
        // For each comparison, the index of each response's sequence.
        let mut asked: Vec<Vec<usize>> = Vec::with_capacity(comparisons.len());
        let scores = judge.scores(comparisons, progress, &mut |comparison| {
            let (sequences, indices) = distinct_sequences(builder, comparison)?;
            asked.push(indices);
            Ok(sequences)
        })?;
        let has_prompt = builder.reads_prompts();
        let verdict = |(indices, numbers): (&Vec<usize>, &Vec<f32>)| {
            if !builder.gives_vectors() {
                return Verdict::Scores(
                    indices.iter().map(|&index| numbers[index].into()).collect(),
                );
            }
            self.config.general_preference.of_numbers(numbers, width, has_prompt, indices)
        };
        Ok(asked.iter().zip(&scores).map(verdict).collect())
    }

    fn identity(&self) -> Option<String> {
        self.model.identity()
    }

    fn expected_sequences(&self, comparisons: u64, candidates: u64) -> Option<u64> {
        Some(comparisons * candidates)
    }
}

sppo_plugin::export_oracle!(RewardOracle);

fn settings(config: &RewardConfig) -> JudgeSettings<'_> {
    JudgeSettings {
        model: &config.model,
        revision: config.revision.as_deref(),
        backend: config.backend.as_deref(),
        batch_tokens: config.batch_tokens,
    }
}

fn load(
    config: &RewardConfig,
    services: &dyn Services,
    progress: &dyn Progress,
) -> Result<(SequenceBuilder, ModelJudge), PluginError> {
    let settings = settings(config);
    let found = settings.find(progress)?;
    let RewardConfig { maximum_tokens, general_preference, .. } = config;
    let builder = SequenceBuilder::read(&found.path, *maximum_tokens, general_preference)?;
    let judge = ModelJudge::load(&settings, found, builder.files(), METRICS, services)?;
    Ok((builder, judge))
}

/// The sequences of a comparison, equal ones once, and for each response the index of its own. A prompt that is
/// asked about itself comes last.
fn distinct_sequences(
    builder: &mut SequenceBuilder,
    comparison: &Comparison,
) -> Result<(Vec<Vec<u32>>, Vec<usize>), PluginError> {
    let mut indices: HashMap<Vec<u32>, usize> = HashMap::new();
    let mut sequences = Vec::with_capacity(comparison.candidates.len());
    let mut asked = Vec::with_capacity(comparison.candidates.len());
    for candidate in comparison.candidates.iter() {
        let sequence = builder.sequence(&comparison.prompt, &candidate.text)?;
        let index = *indices.entry(sequence).or_insert_with_key(|sequence| {
            sequences.push(sequence.clone());
            sequences.len() - 1
        });
        asked.push(index);
    }
    if builder.reads_prompts() {
        sequences.push(builder.prompt(&comparison.prompt)?);
    }
    Ok((sequences, asked))
}

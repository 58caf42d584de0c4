//! The oracle: it finds the reward model, has every answer scored, and hands back the scores.

use sppo_model::serve::judge::{
    Entries, JudgeSettings, MetricNames, ModelJudge, Question, Questions,
};
use sppo_plugin::{
    Candidate, Comparison, Oracle, Plugin, PluginError, Progress, Services, Verdict,
};

use crate::config::RewardConfig;
use crate::layout::{LEAST_TOKENS, Layout};

const METRICS: MetricNames = ["answers", "answers_per_second", "reward_tokens"];

/// Judges answers with a reward model.
pub struct RewardOracle {
    config: RewardConfig,
    model: Option<LoadedModel>,
}

struct LoadedModel {
    layout: Layout,
    judge: ModelJudge,
}

impl Plugin for RewardOracle {
    type Config = RewardConfig;
    const NAME: &'static str = "reward";
    const SUMMARY: &'static str = "A reward model that scores each answer, on the run's backend";

    fn create(config: RewardConfig) -> Result<Self, PluginError> {
        settings(&config).check("Skywork/Skywork-Reward-V2-Qwen3-0.6B")?;
        match config.maximum_tokens {
            Some(tokens) if tokens < LEAST_TOKENS => Err(PluginError::configuration(format!(
                "maximum_tokens: {tokens} leave no room for an answer"
            ))
            .with_hint("leave it out, or set it to some hundreds")),
            _ => Ok(Self { config, model: None }),
        }
    }
}

impl Oracle for RewardOracle {
    fn prepare(
        &mut self,
        services: &dyn Services,
        progress: &dyn Progress,
    ) -> Result<(), PluginError> {
        if self.model.is_none() {
            self.model = Some(LoadedModel::load(&self.config, services, progress)?);
        }
        Ok(())
    }

    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        progress: &dyn Progress,
    ) -> Result<Vec<Verdict>, PluginError> {
        let Some(LoadedModel { layout, judge }) = &mut self.model else {
            return Err(PluginError::failed("the reward model is not loaded"));
        };
        let tables =
            judge.tables(comparisons, progress, &mut |comparison| questions(layout, comparison))?;
        let scores = |table: Vec<f32>| table.into_iter().map(f64::from).collect();
        Ok(tables.into_iter().map(|table| Verdict::Scores(scores(table))).collect())
    }

    fn identity(&self) -> Option<String> {
        self.model.as_ref().map(|model| model.judge.identity().to_string())
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

impl LoadedModel {
    fn load(
        config: &RewardConfig,
        services: &dyn Services,
        progress: &dyn Progress,
    ) -> Result<Self, PluginError> {
        let settings = settings(config);
        let found = settings.find(progress)?;
        let layout = Layout::read(&found.path, config.maximum_tokens)?;
        let judge = ModelJudge::load(&settings, found, layout.files(), METRICS, services)?;
        Ok(Self { layout, judge })
    }
}

/// Every answer to a prompt. Equal ones are scored once.
fn questions(layout: &mut Layout, comparison: &Comparison) -> Result<Questions, PluginError> {
    let mut asked: Vec<Question> = Vec::with_capacity(comparison.candidates.len());
    for (place, Candidate { text, .. }) in comparison.candidates.iter().enumerate() {
        let sequence = layout.sequence(&comparison.prompt, text)?;
        match asked.iter_mut().find(|earlier| earlier.sequence == sequence) {
            Some(earlier) => earlier.entries.same.push(place),
            None => {
                let entries = Entries { same: vec![place], opposite: Vec::new() };
                asked.push(Question { sequence, entries });
            }
        }
    }
    Ok(Questions { table_length: comparison.candidates.len(), asked })
}

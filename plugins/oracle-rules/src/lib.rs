//! The oracle `rules`: a committee of verifiable criteria that judges responses without a model.
//!
//! Every criterion votes on every pair of responses (for one, for the other, or a tie), and
//! `P(i > j)` is the weighted share of votes that response `i` gets, a tie counting half for each.
//! Majorities of different criteria can contradict each other in a circle, so the preference may be
//! truly intransitive, which is the case that SPPO is made for.
//!
//! A response without a single letter or digit says nothing, and loses to every response that has one,
//! whatever the committee thinks of its brevity.
//!
//! The default committee suits someone who wants a model that answers briefly, keeps to the question
//! and ends by itself. [`RulesConfig`] describes all settings.

mod committee;
mod config;
mod criteria;
mod text;

use sppo_plugin::{Comparison, Oracle, Plugin, PluginError, Progress, Verdict};

use committee::Committee;
pub use config::{
    EndedConfig, JsonConfig, LengthConfig, PatternsConfig, RelevanceConfig, RepetitionConfig,
    RulesConfig,
};

/// Judges responses by a committee of verifiable criteria.
pub struct RulesOracle {
    committee: Committee,
}

impl Plugin for RulesOracle {
    type Config = RulesConfig;
    const NAME: &'static str = "rules";
    const SUMMARY: &'static str = "A committee of verifiable criteria: ends by itself, brief, to the point, not repetitive, and more";

    fn create(config: RulesConfig) -> Result<Self, PluginError> {
        Ok(Self { committee: Committee::new(&config)? })
    }
}

impl Oracle for RulesOracle {
    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        progress: &dyn Progress,
    ) -> Result<Vec<Verdict>, PluginError> {
        let total = comparisons.len() as u64;
        let mut verdicts = Vec::with_capacity(comparisons.len());
        for (completed, comparison) in (1..).zip(comparisons) {
            if progress.is_cancelled() {
                return Err(PluginError::cancelled());
            }
            verdicts.push(Verdict::Probabilities(self.committee.judge(comparison)));
            progress.progress(completed, total);
        }
        Ok(verdicts)
    }
}

sppo_plugin::export_oracle!(RulesOracle);

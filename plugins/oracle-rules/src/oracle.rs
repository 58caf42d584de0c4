//! The committee as a plugin.

use sppo_plugin::{Comparison, Oracle, Plugin, PluginError, Progress, Verdict};

use crate::committee::Committee;
use crate::config::RulesConfig;

/// Judges answers by a committee of verifiable criteria.
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

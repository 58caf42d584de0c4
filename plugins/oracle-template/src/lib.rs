//! The oracle `oracle-template`: prefers responses whose length is near a target.

use schemars::JsonSchema;
use serde::Deserialize;
use sppo_plugin::{Comparison, Oracle, Plugin, PluginError, Progress, Verdict};

/// The table `[oracle.oracle-template]`.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TemplateConfig {
    /// The best length of a response, in words.
    pub target_words: usize,
}

impl Default for TemplateConfig {
    fn default() -> Self {
        Self { target_words: 25 }
    }
}

/// Judges responses by their length.
pub struct TemplateOracle(TemplateConfig);

impl Plugin for TemplateOracle {
    type Config = TemplateConfig;
    const NAME: &'static str = "oracle-template";
    const SUMMARY: &'static str = "Prefers answers whose length is near a target";

    fn create(config: TemplateConfig) -> Result<Self, PluginError> {
        Ok(Self(config))
    }
}

impl Oracle for TemplateOracle {
    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        progress: &dyn Progress,
    ) -> Result<Vec<Verdict>, PluginError> {
        let mut verdicts = Vec::with_capacity(comparisons.len());
        for comparison in comparisons {
            if progress.is_cancelled() {
                return Err(PluginError::cancelled());
            }
            // One score per candidate, the higher the better. An oracle that compares pairs returns
            // `Verdict::Probabilities` instead: the K x K matrix of P(i is preferred to j).
            let score = |text: &str| {
                let words = text.split_whitespace().count();
                -(words.abs_diff(self.0.target_words) as f64)
            };
            let scores = comparison.candidates.iter().map(|candidate| score(&candidate.text));
            verdicts.push(Verdict::Scores(scores.collect()));
            progress.progress(verdicts.len() as u64, comparisons.len() as u64);
        }
        Ok(verdicts)
    }
}

sppo_plugin::export_oracle!(TemplateOracle);

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sppo_plugin::conformance::{Finding, check_oracle};
    use sppo_plugin::{SilentHost, create_oracle};

    #[test]
    fn it_does_what_every_oracle_must() {
        let mut create = |settings| {
            create_oracle("oracle-template", settings).map_err(|error| error.to_string())
        };
        for finding in check_oracle(&mut create, &json!({}), &SilentHost) {
            assert!(!Finding::is_failure(&finding), "{finding:?}");
        }
    }
}

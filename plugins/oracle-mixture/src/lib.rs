//! The oracle `mixture`: `P(i > j)` is the weighted average of the probabilities of other oracles.
//!
//! A mixture of preferences is a preference, transitive or not, so that a committee of a cheap oracle
//! and a careful one, or of judges with different tastes, is played against as one oracle. The others
//! are named in the settings and have their own:
//!
//! ```toml
//! [oracle]
//! name = "mixture"
//!
//! [oracle.mixture.weights]
//! rules = 1.0
//! my-oracle = 3.0
//!
//! [oracle.rules.length]
//! max_words = 25
//! ```

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use sppo_plugin::win_rate::{self, WinRateEstimator};
use sppo_plugin::{Comparison, Oracle, Plugin, PluginError, Progress, Services, Verdict};

/// The table `[oracle.mixture]`.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MixtureConfig {
    /// The weight of each oracle, by name; only the ratios matter.
    pub weights: BTreeMap<String, f64>,
    /// For members that return pairwise logits: the estimator of win rates.
    pub estimator: WinRateEstimator,
    /// For members that return scores: `P(i > j) = sigmoid((s_i - s_j) / temperature)`.
    pub bradley_terry_temperature: f64,
}

impl Default for MixtureConfig {
    fn default() -> Self {
        Self {
            weights: BTreeMap::from([("rules".into(), 1.0)]),
            estimator: WinRateEstimator::default(),
            bradley_terry_temperature: 1.0,
        }
    }
}

/// Averages the verdicts of other oracles.
pub struct MixtureOracle {
    config: MixtureConfig,
    /// Empty until a host is there to create them.
    members: Vec<Member>,
}

struct Member {
    name: String,
    /// Its weight, as a share of all weights: they sum to 1.
    share: f64,
    oracle: Box<dyn Oracle>,
}

impl Plugin for MixtureOracle {
    type Config = MixtureConfig;
    const NAME: &'static str = "mixture";
    const SUMMARY: &'static str = "A weighted average of what other oracles say";

    fn create(config: MixtureConfig) -> Result<Self, PluginError> {
        if let Some((name, weight)) =
            config.weights.iter().find(|(_, weight)| !(weight.is_finite() && **weight > 0.0))
        {
            return Err(PluginError::configuration(format!(
                "weights.{name}: {weight} is not a number above 0"
            ))
            .with_hint("leave out an oracle that should not count"));
        }
        if config.weights.is_empty() {
            return Err(PluginError::configuration("weights: there is no oracle to ask")
                .with_hint("name at least one, for instance weights = { rules = 1.0 }"));
        }
        if config.weights.contains_key(Self::NAME) {
            return Err(PluginError::configuration("weights: a mixture cannot contain itself")
                .with_hint("name the other oracles"));
        }
        let temperature = config.bradley_terry_temperature;
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(PluginError::configuration(format!(
                "bradley_terry_temperature: {temperature} is not a number above 0"
            )));
        }
        Ok(Self { config, members: Vec::new() })
    }
}

impl Oracle for MixtureOracle {
    fn prepare(
        &mut self,
        services: &dyn Services,
        progress: &dyn Progress,
    ) -> Result<(), PluginError> {
        if !self.members.is_empty() {
            return Ok(());
        }
        let total: f64 = self.config.weights.values().sum();
        let mut members = Vec::with_capacity(self.config.weights.len());
        for (name, weight) in &self.config.weights {
            let mut oracle = services.oracle(name)?;
            oracle.prepare(services, progress).map_err(|error| named(name, error))?;
            members.push(Member { name: name.clone(), share: weight / total, oracle });
        }
        self.members = members;
        Ok(())
    }

    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        progress: &dyn Progress,
    ) -> Result<Vec<Verdict>, PluginError> {
        if self.members.is_empty() {
            return Err(PluginError::failed("the mixture was not prepared"));
        }
        let sizes = comparisons.iter().map(|comparison| comparison.candidates.len().pow(2));
        let mut mixed: Vec<Vec<f64>> = sizes.map(|size| vec![0.0; size]).collect();
        let count = self.members.len() as u64;
        for (asked, member) in (0..).zip(&mut self.members) {
            let part = PartOfMembers { progress, asked, count };
            let verdicts = member.oracle.preferences(comparisons, &part);
            let verdicts = verdicts.map_err(|error| named(&member.name, error))?;
            if verdicts.len() != comparisons.len() {
                let message = format!(
                    "asked for {} verdicts, it returned {}",
                    comparisons.len(),
                    verdicts.len()
                );
                return Err(named(&member.name, PluginError::failed(message)));
            }
            for ((verdict, comparison), mixed) in
                verdicts.into_iter().zip(comparisons).zip(&mut mixed)
            {
                let preferences = win_rate::judge(
                    verdict,
                    comparison.candidates.len(),
                    self.config.estimator,
                    self.config.bradley_terry_temperature,
                )
                .map_err(|error| named(&member.name, PluginError::failed(error.to_string())))?;
                for (sum, probability) in mixed.iter_mut().zip(preferences.matrix.values()) {
                    *sum += member.share * probability;
                }
            }
        }
        Ok(mixed.into_iter().map(within_bounds).collect())
    }

    /// The identities of the members that have one.
    fn identity(&self) -> Option<String> {
        let identities = self
            .members
            .iter()
            .filter_map(|member| Some(format!("{}: {}", member.name, member.oracle.identity()?)));
        let identities: Vec<String> = identities.collect();
        (!identities.is_empty()).then(|| identities.join("; "))
    }

    fn expected_requests(&self, comparisons: u64, candidates: u64) -> Option<u64> {
        let ask = |member: &Member| member.oracle.expected_requests(comparisons, candidates);
        self.members.iter().filter_map(ask).reduce(|sum, requests| sum + requests)
    }

    fn expected_sequences(&self, comparisons: u64, candidates: u64) -> Option<u64> {
        let ask = |member: &Member| member.oracle.expected_sequences(comparisons, candidates);
        self.members.iter().filter_map(ask).reduce(|sum, sequences| sum + sequences)
    }
}

/// Sums of shares may miss 1 by a rounding error.
fn within_bounds(mut matrix: Vec<f64>) -> Verdict {
    let size = matrix.len().isqrt();
    matrix.iter_mut().for_each(|probability| *probability = probability.clamp(0.0, 1.0));
    (0..size).for_each(|index| matrix[index * size + index] = 0.5);
    Verdict::Probabilities(matrix)
}

fn named(member: &str, mut error: PluginError) -> PluginError {
    error.message = format!("oracle `{member}`: {}", error.message);
    error
}

/// The watcher of one member, whose progress is a part of the whole.
struct PartOfMembers<'a> {
    progress: &'a dyn Progress,
    asked: u64,
    count: u64,
}

impl Progress for PartOfMembers<'_> {
    fn is_cancelled(&self) -> bool {
        self.progress.is_cancelled()
    }

    fn progress(&self, completed: u64, total: u64) {
        self.progress.progress((self.asked * total + completed) / self.count, total);
    }

    fn metrics(&self, values: &[(&str, f64)]) {
        self.progress.metrics(values);
    }
}

sppo_plugin::export_oracle!(MixtureOracle);

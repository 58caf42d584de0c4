//! The oracle `mixture`: `P(i > j)` is the weighted average of the probabilities of other oracles.
//!
//! A mixture of preferences is a preference, transitive or not, so that a committee of a cheap oracle
//! and a careful one, or of judges with different tastes, is played against as one oracle. The others
//! are named in the settings and have their own. Where all of them tell both orders of presentation, so does the
//! mixture:
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
use sppo_plugin::order::OrderMatrix;
use sppo_plugin::preference::PreferenceMatrix;
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
        let sizes = comparisons.iter().map(|comparison| comparison.candidates.len());
        let mut mixed: Vec<Mixed> = sizes.map(Mixed::of_size).collect();
        let count = self.members.len() as u64;
        let MixtureConfig { estimator, bradley_terry_temperature, .. } = self.config;
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
            for (verdict, mixed) in verdicts.into_iter().zip(&mut mixed) {
                // Only these are averaged over the orders by whoever takes them.
                let is_by_order = matches!(verdict, Verdict::Orders(_));
                let said =
                    win_rate::judge(verdict, mixed.size, estimator, bradley_terry_temperature)
                        .map_err(|error| PluginError::failed(error.to_string()))
                        .map_err(|error| named(&member.name, error))?;
                mixed.add(member.share, &said.matrix, said.orders.filter(|_| is_by_order));
            }
        }
        Ok(mixed.into_iter().map(Mixed::verdict).collect())
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

/// Preferences among the candidates of a comparison, over the members that were asked so far.
struct Mixed {
    size: usize,
    /// The weighted sum of their probabilities, row by row.
    sums: Vec<f64>,
    /// The share of each member with its word in each order of presentation, where it told of orders.
    orders: Vec<(f64, Option<OrderMatrix>)>,
}

impl Mixed {
    fn of_size(size: usize) -> Self {
        Self { size, sums: vec![0.0; size * size], orders: Vec::new() }
    }

    /// Adds the word of a member.
    fn add(&mut self, share: f64, matrix: &PreferenceMatrix, orders: Option<OrderMatrix>) {
        for (sum, probability) in self.sums.iter_mut().zip(matrix.values()) {
            *sum += share * probability;
        }
        self.orders.push((share, orders));
    }

    fn verdict(self) -> Verdict {
        match self.mixed_orders() {
            Some(orders) => Verdict::Orders(orders),
            None => Verdict::Probabilities(self.probabilities()),
        }
    }

    /// The probabilities in each order; `None` unless every member told both orders of every pair that any of them
    /// was asked about.
    fn mixed_orders(&self) -> Option<Vec<Option<f64>>> {
        let told = self.orders.iter().map(|(share, orders)| Some((*share, orders.as_ref()?)));
        let told: Vec<(f64, &OrderMatrix)> = told.collect::<Option<_>>()?;
        let mix = |index: usize| {
            let (first, second) = (index / self.size, index % self.size);
            let is_silent = |(_, orders): &(f64, &OrderMatrix)| {
                orders.get(first, second).is_none() && orders.get(second, first).is_none()
            };
            if told.iter().all(is_silent) {
                return Some(None);
            }
            let parts = told.iter().map(|(share, one)| Some(share * one.get(first, second)?));
            parts.sum::<Option<f64>>().map(|sum| Some(sum.clamp(0.0, 1.0)))
        };
        (0..self.size * self.size).map(mix).collect()
    }

    /// Sums of shares may miss 1 by a rounding error.
    fn probabilities(mut self) -> Vec<f64> {
        self.sums.iter_mut().for_each(|probability| *probability = probability.clamp(0.0, 1.0));
        (0..self.size).for_each(|index| self.sums[index * self.size + index] = 0.5);
        self.sums
    }
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

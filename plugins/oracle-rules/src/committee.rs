//! The members of the committee with their weights, and the probabilities that follow from their votes.

use sppo_plugin::{Comparison, PluginError};

use crate::config::RulesConfig;
use crate::criteria::{Criterion, Ended, Json, Length, Patterns, Relevance, Repetition, Vote};
use crate::text::Reading;

/// Far beyond any use, and far from where sums of weights lose precision.
const MAX_WEIGHT: f64 = 1e6;

struct Member {
    weight: f64,
    criterion: Box<dyn Criterion>,
}

/// The criteria that vote.
pub(crate) struct Committee {
    members: Vec<Member>,
    total_weight: f64,
}

impl Committee {
    pub(crate) fn new(config: &RulesConfig) -> Result<Self, PluginError> {
        let RulesConfig { ended, length, repetition, relevance, required, forbidden, json } =
            config;
        let mut members = vec![
            member("ended", ended.weight, Ended)?,
            member("length", length.weight, Length::new(length)?)?,
            member("repetition", repetition.weight, Repetition::new(repetition)?)?,
            member("relevance", relevance.weight, Relevance::new(relevance)?)?,
            member("json", json.weight, Json)?,
        ];
        // Without patterns these would tie always and only pull every probability towards 1/2.
        let required_member = member("required", required.weight, Patterns::required(required)?)?;
        if !required.patterns.is_empty() {
            members.push(required_member);
        }
        let forbidden_member =
            member("forbidden", forbidden.weight, Patterns::forbidden(forbidden)?)?;
        if !forbidden.patterns.is_empty() {
            members.push(forbidden_member);
        }
        members.retain(|member| member.weight > 0.0);
        if members.is_empty() {
            return Err(PluginError::configuration("no criterion votes, all weights are 0")
                .with_hint("give at least one a weight, for instance `length.weight = 1`"));
        }
        let total_weight = members.iter().map(|member| member.weight).sum();
        Ok(Self { members, total_weight })
    }

    /// `P[i][j]`, row-major `K x K`: the weighted share of votes that response `i` gets against `j`.
    pub(crate) fn judge(&self, comparison: &Comparison) -> Vec<f64> {
        let reading = Reading::new(comparison);
        let silent: Vec<bool> =
            reading.responses.iter().map(|response| response.says_nothing()).collect();
        let leads = self.leads(&reading);
        let count = silent.len();
        let probability = |first: usize, second: usize| match (silent[first], silent[second]) {
            (false, true) => 1.0,
            (true, false) => 0.0,
            // From the lead and not from the share, so that P[i][j] and P[j][i] are rounded alike.
            _ => 0.5 + 0.5 * leads[first * count + second] / self.total_weight,
        };
        (0..count * count).map(|pair| probability(pair / count, pair % count)).collect()
    }

    /// The weight of the votes for `i` less that of the votes for `j`, row-major `K x K`.
    fn leads(&self, reading: &Reading<'_>) -> Vec<f64> {
        let count = reading.responses.len();
        let mut leads = vec![0.0; count * count];
        for Member { weight, criterion } in &self.members {
            let measures = criterion.measures(reading);
            let pairs = measures.iter().flat_map(|a| measures.iter().map(move |b| (*a, *b)));
            for (lead, (first, second)) in leads.iter_mut().zip(pairs) {
                *lead += weight * Vote::between(first, second, criterion.margin()).sign();
            }
        }
        leads
    }
}

fn member(
    name: &str,
    weight: f64,
    criterion: impl Criterion + 'static,
) -> Result<Member, PluginError> {
    if (0.0..=MAX_WEIGHT).contains(&weight) {
        Ok(Member { weight, criterion: Box::new(criterion) })
    } else {
        Err(PluginError::configuration(format!(
            "{name}.weight: {weight} is not a number of votes from 0 to {MAX_WEIGHT}"
        ))
        .with_hint(format!("write `{name}.weight = 0` to leave the criterion out")))
    }
}

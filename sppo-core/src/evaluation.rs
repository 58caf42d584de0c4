//! How much better one model's answers are than another's, by an oracle's word.

use crate::error::Result;
use crate::plugin::{Candidate, Comparison, Host, Oracle};
use crate::records::Rollout;
use crate::stages::{self, PreferenceSettings};

/// For each prompt, the mean probability that the challenger's answer beats the baseline's, sample
/// against sample. Both lists answer the same prompts with the same number of samples.
///
/// # Errors
/// When the oracle fails.
pub fn win_rates(
    oracle: &mut dyn Oracle,
    challenger: &[Rollout],
    baseline: &[Rollout],
    settings: &PreferenceSettings,
    host: &dyn Host,
) -> Result<Vec<f64>> {
    let duels: Vec<Vec<Comparison<'_>>> =
        challenger.iter().zip(baseline).map(|(ours, theirs)| duels(ours, theirs)).collect();
    let judged = stages::judge(oracle, &duels.concat(), settings, host)?;
    let mut judged = judged.iter();
    Ok(duels
        .iter()
        .map(|of_one_prompt| {
            let wins: f64 =
                judged.by_ref().take(of_one_prompt.len()).map(|duel| duel.matrix.get(0, 1)).sum();
            wins / of_one_prompt.len().max(1) as f64
        })
        .collect())
}

/// One two-candidate comparison per sample, the challenger first.
fn duels<'a>(challenger: &'a Rollout, baseline: &'a Rollout) -> Vec<Comparison<'a>> {
    let ours = stages::comparison(challenger);
    let theirs = stages::comparison(baseline);
    let pairs = ours.candidates.iter().zip(&theirs.candidates);
    let duel = |(a, b): (&Candidate<'a>, &Candidate<'a>)| Comparison {
        prompt: ours.prompt.clone(),
        rendered_prompt: ours.rendered_prompt.clone(),
        candidates: [a.clone(), b.clone()].into(),
    };
    pairs.map(duel).collect()
}

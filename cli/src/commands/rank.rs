//! `sppo rank`: candidates in, the same lines with preferences out.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sppo_core::datasets::{CandidateSet, RankedCandidates, read_candidates, write_ranked};
use sppo_core::observer::Stage;
use sppo_core::plugin::{
    Candidate, Comparison, Conversation, Oracle, PluginError, Progress, Verdict,
};
use sppo_core::selection::{Selection, SelectionRule, SelectionStrategy, SkipCounts, select};
use sppo_core::stages;
use sppo_core::tables;
use sppo_core::win_rate::Judged;

use super::session::Session;
use crate::args::RankArguments;
use crate::failure::Result;
use crate::interrupt;
use crate::output::RowsTo;
use crate::settings::Flags;
use crate::terminal::Terminal;

pub(super) fn rank(arguments: &RankArguments, terminal: &Terminal) -> Result<()> {
    let flags = Flags::of(&[&arguments.settings, &arguments.oracle, &arguments.backend])?;
    let config = arguments.settings.resolve(flags)?.config;
    let sets = read_candidates(&arguments.candidates)?;
    let ranked_to = RowsTo::new(arguments.output.as_deref())?;
    let pairs_to = arguments.pairs.as_deref().map(|path| RowsTo::new(Some(path))).transpose()?;

    let session = Session::open(config, terminal)?;
    let mut oracle = RememberingOracle { inner: session.oracle()?, scores: Vec::new() };
    interrupt::watch();
    let judge_name = session.describe_oracle(oracle.inner.as_ref());
    let judged = judge(&session, &mut oracle, &sets)?;

    if let Some(pairs_to) = pairs_to {
        let skipped = write_pairs(pairs_to.path(), &session, &sets, &judged)?;
        report_skipped(skipped, terminal);
    }
    let ranked: Vec<RankedCandidates> = sets
        .into_iter()
        .zip(judged)
        .zip(oracle.scores)
        .map(|((set, judged), scores)| RankedCandidates {
            set,
            probability: judged.matrix.values().to_vec(),
            scores: scores.then_some(judged.scores),
        })
        .collect();
    write_ranked(ranked_to.path(), &ranked, &judge_name)?;
    ranked_to.finish(ranked.len(), arguments.report)
}

fn judge(session: &Session, oracle: &mut dyn Oracle, sets: &[CandidateSet]) -> Result<Vec<Judged>> {
    let meter = session.stage(Stage::Judge, sets.len(), "prompts");
    let settings = session.config.preference;
    let mut judged = Vec::with_capacity(sets.len());
    for part in sets.chunks(session.config.sampling.prompts_per_shard) {
        let comparisons: Vec<_> = part.iter().map(comparison).collect();
        let verdicts =
            stages::judge(oracle, &comparisons, &settings, &meter.host()).map_err(|error| {
                error.from_plugin(format!("oracle `{}`", session.config.oracle.name))
            })?;
        judged.extend(verdicts);
        meter.reach(judged.len())?;
    }
    meter.finish(format!("{} comparisons", judged.len()));
    Ok(judged)
}

fn comparison(set: &CandidateSet) -> Comparison<'_> {
    Comparison {
        prompt: set.messages.as_slice().into(),
        rendered_prompt: None,
        candidates: set.candidates.iter().map(Candidate::from_text).collect(),
    }
}

/// Passes everything on, and remembers for which comparisons the oracle gave scores or logits, whose
/// aggregate is a score.
struct RememberingOracle {
    inner: Box<dyn Oracle>,
    scores: Vec<bool>,
}

impl Oracle for RememberingOracle {
    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        progress: &dyn Progress,
    ) -> std::result::Result<Vec<Verdict>, PluginError> {
        let verdicts = self.inner.preferences(comparisons, progress)?;
        let scored = |verdict: &Verdict| !matches!(verdict, Verdict::Probabilities(_));
        self.scores.extend(verdicts.iter().map(scored));
        Ok(verdicts)
    }
}

/// A pair with the official column names, its answers as text.
#[derive(Serialize, Deserialize)]
struct TextPair {
    messages: Conversation,
    chosen: String,
    rejected: String,
    chosen_probs: f64,
    chosen_probs_win: f64,
    chosen_probs_lose: f64,
}

/// Writes the best and the worst candidate of each line that has them.
fn write_pairs(
    path: &Path,
    session: &Session,
    sets: &[CandidateSet],
    judged: &[Judged],
) -> Result<SkipCounts> {
    let keep_degenerate = session.config.selection.keep_degenerate;
    let rule = SelectionRule { strategy: SelectionStrategy::BestAndWorst, keep_degenerate };
    let mut skipped = SkipCounts::default();
    let mut pairs = Vec::with_capacity(sets.len());
    for (set, Judged { matrix, scores }) in sets.iter().zip(judged) {
        let texts: Vec<&str> = set.candidates.iter().map(String::as_str).collect();
        match select(scores, &texts, &rule) {
            Selection::Skipped(reason) => skipped.add(reason),
            Selection::Chosen { indices } => {
                if let (Some(&best), Some(&worst)) = (indices.first(), indices.last()) {
                    pairs.push(TextPair {
                        messages: set.messages.clone(),
                        chosen: set.candidates[best].clone(),
                        rejected: set.candidates[worst].clone(),
                        chosen_probs: matrix.get(best, worst),
                        chosen_probs_win: matrix.win_rate(best),
                        chosen_probs_lose: matrix.win_rate(worst),
                    });
                }
            }
        }
    }
    tables::write(path, &pairs)?;
    Ok(skipped)
}

fn report_skipped(skipped: SkipCounts, terminal: &Terminal) {
    let SkipCounts { identical_texts, equal_scores } = skipped;
    if identical_texts + equal_scores > 0 {
        terminal.note(&format!(
            "no pair from {equal_scores} lines whose candidates all scored the same, nor from \
             {identical_texts} whose best and worst read the same"
        ));
    }
}

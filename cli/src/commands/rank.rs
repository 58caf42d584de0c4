//! `sppo rank`: candidates in, the same lines with preferences out.

use sppo_core::datasets::{
    CandidateSet, RankedCandidates, pair_candidates, read_candidates_named, write_pairs,
    write_ranked,
};
use sppo_core::plugin::{Candidate, Comparison};
use sppo_core::selection::SkipCounts;

use super::session::Setup;
use crate::args::RankArguments;
use crate::failure::Result;
use crate::interrupt;
use crate::output::{self, RowsTo};
use crate::settings::Flags;
use crate::terminal::Terminal;

pub(super) fn rank(arguments: &RankArguments, terminal: &Terminal) -> Result<()> {
    let flags = Flags::of(&[&arguments.settings, &arguments.oracle, &arguments.backend])?;
    let config = arguments.settings.resolve(flags)?.config;
    let sets = read_candidates_named(&arguments.candidates, &config.prompts.columns)?;
    let ranked_to = RowsTo::new(arguments.output.as_deref())?;
    let pairs_to = arguments.pairs.as_deref().map(|path| RowsTo::new(Some(path))).transpose()?;
    output::require_distinct(
        &[("--output", arguments.output.as_deref()), ("--pairs", arguments.pairs.as_deref())],
        &[("CANDIDATES", Some(&arguments.candidates))],
    )?;

    let setup = Setup::new(config, terminal)?;
    let session = setup.session();
    let mut oracle = session.oracle()?;
    interrupt::watch();
    let judge_name = setup.describe_oracle(oracle.as_ref());
    let comparisons: Vec<_> = sets.iter().map(comparison).collect();
    let judged = session.judge(oracle.as_mut(), &comparisons)?;
    drop(comparisons);

    if let Some(pairs_to) = pairs_to {
        let keep_degenerate = setup.config.selection.keep_degenerate;
        let (pairs, skipped) = pair_candidates(&sets, &judged, keep_degenerate);
        write_pairs(pairs_to.path(), pairs)?;
        report_skipped(skipped, terminal);
    }
    let ranked: Vec<RankedCandidates> = sets
        .into_iter()
        .zip(judged)
        .map(|(set, judged)| RankedCandidates { set, judged })
        .collect();
    write_ranked(ranked_to.path(), &ranked, &judge_name)?;
    ranked_to.finish(ranked.len(), arguments.report)
}

fn comparison(set: &CandidateSet) -> Comparison<'_> {
    Comparison {
        prompt: set.messages.as_slice().into(),
        rendered_prompt: None,
        candidates: set.candidates.iter().map(Candidate::from_text).collect(),
    }
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

//! The outcome in a sentence, and what makes it doubtful.

use sppo_core::statistics::Interval;

use super::{counted, percent, share};
use crate::page::{Badge, Level};
use crate::run::{IterationSummary, RunReport, RunState};

/// Share of prompts without a pair, from which on it is worth a word.
const MANY_SKIPPED: f64 = 0.3;
/// Factor of the answers' length, from which on it is worth a word.
const MUCH_LONGER: f64 = 1.5;
/// Distance of the first place's probability from one half, from which on it is worth a word.
const POSITION_BIAS: f64 = 0.1;
/// Share of pairs whose winner depends on the order, from which on it is worth a word.
const MANY_BY_ORDER: f64 = 0.25;
/// Share of triples that go round, from which on it is worth a word. It is a quarter where winners are drawn.
const MANY_CIRCLES: f64 = 0.1;
/// Probability of a judge's labels, below which it is worth a word.
const FEW_LABELS: f64 = 0.5;
/// Share of verdicts that were no verdicts, from which on it is worth a word.
const MANY_INVALID: f64 = 0.05;

/// The outcome.
pub(super) fn sentence(runs: &[RunReport]) -> String {
    match runs {
        [] => "There is no run.".into(),
        [run] => outcome(run),
        runs => {
            let last = |run: &RunReport| Some((win_rate(last(run)?)?.mean, run.name.clone()));
            let best = runs.iter().filter_map(last).max_by(|a, b| a.0.total_cmp(&b.0));
            match best {
                Some((mean, name)) => format!(
                    "{name} has the highest win rate against its start, {} after its last iteration.",
                    percent(mean)
                ),
                None => "None of these runs has been compared with its start yet.".into(),
            }
        }
    }
}

fn outcome(run: &RunReport) -> String {
    let finished = run.iterations.len().saturating_sub(1);
    let planned = run.planned_iterations as usize;
    let state = match run.state {
        RunState::Running => format!("Iteration {} of {planned} is being played. ", finished + 1),
        RunState::Stopped => format!("Stopped after {finished} of {planned} iterations. "),
        RunState::Finished => String::new(),
    };
    let Some(last) = last(run) else {
        return format!("{state}No iteration has been finished yet.");
    };
    let Some(Interval { mean, low, high }) = win_rate(last) else {
        let played = counted(finished, "iteration");
        return format!("{state}{played} played, and not compared with the start.");
    };
    let equal_length = match last.length_controlled {
        Some(rate) => format!("; {} at equal length", percent(rate.mean)),
        None => String::new(),
    };
    format!(
        "{state}After {} the model wins {} ({} to {}) of its duels with the starting model on {}{equal_length}.",
        counted(finished, "iteration"),
        percent(mean),
        percent(low),
        percent(high),
        counted(run.held_out.len(), "held-out prompt"),
    )
}

/// The model, the judge and the method of each run, without repetitions.
pub(super) fn facts(runs: &[RunReport]) -> Vec<String> {
    let mut facts: Vec<String> = Vec::new();
    for run in runs {
        let of_run = [
            format!("model {}", run.model),
            format!("oracle {}", run.oracle_name),
            format!("objective {}", run.objective),
            format!("eta {}", run.eta),
            format!("{} answers per prompt", run.samples_per_prompt),
        ];
        for fact in of_run {
            if !facts.contains(&fact) {
                facts.push(fact);
            }
        }
    }
    facts
}

/// Warnings, the weightiest first.
pub(super) fn badges(runs: &[RunReport]) -> Vec<Badge> {
    let several = runs.len() > 1;
    let mut badges: Vec<Badge> = Vec::new();
    for run in runs {
        for (level, text) in doubts(run).into_iter().chain(remarks(run)) {
            let text = if several { format!("{}: {text}", run.name) } else { text };
            badges.push(Badge { level, text });
        }
    }
    badges.sort_by_key(|badge| badge.level != Level::Warning);
    badges
}

/// The last finished iteration, the start aside.
fn last(run: &RunReport) -> Option<&IterationSummary> {
    run.iterations.last().filter(|last| last.report.iteration > 0)
}

fn win_rate(summary: &IterationSummary) -> Option<Interval> {
    summary.report.win_rate
}

/// Reasons to trust the win rate less.
fn doubts(run: &RunReport) -> Vec<(Level, String)> {
    let Some(last) = last(run) else { return Vec::new() };
    let mut doubts = doubts_of_answers(run, last);
    doubts.extend(doubts_of_oracle(run));
    if run.steps.iter().any(|step| step.loss.is_none()) {
        doubts.push("the loss was not finite in some steps".into());
    }
    doubts.into_iter().map(|text| (Level::Warning, text)).collect()
}

fn doubts_of_answers(run: &RunReport, last: &IterationSummary) -> Vec<String> {
    let mut doubts = Vec::new();
    let mut doubt = |text: String| doubts.push(text);
    if let Some(rate) = win_rate(last)
        && rate.low <= 0.5
        && rate.high >= 0.5
    {
        doubt("the interval of the win rate includes 50 %: this may be chance".into());
    }
    if let (Some(rate), Some(equal)) = (win_rate(last), last.length_controlled)
        && rate.mean > 0.55
        && equal.mean - 0.5 < 0.5 * (rate.mean - 0.5)
    {
        doubt(format!(
            "more than half of the gain goes with the length of the answers: {} at equal length",
            percent(equal.mean)
        ));
    }
    if let Some((before, after)) = lengths(run, last) {
        let factor = if after > before { after / before } else { before / after };
        if factor >= MUCH_LONGER {
            let change = if after > before { "longer" } else { "shorter" };
            doubt(format!(
                "answers became {factor:.1} times {change}: {before:.0} to {after:.0} tokens"
            ));
        }
    }
    if let Some(ended) = last.report.stop_rate.filter(|ended| *ended < 0.5) {
        doubt(format!(
            "{} of the answers were cut off by the limit of tokens",
            percent(1.0 - ended)
        ));
    }
    doubts
}

fn doubts_of_oracle(run: &RunReport) -> Vec<String> {
    let mut doubts = Vec::new();
    let mut doubt = |text: String| doubts.push(text);
    if let Some(first) = run.oracle.held_out_orders.first_place_probability
        && (first - 0.5).abs() > POSITION_BIAS
    {
        doubt(format!(
            "the oracle prefers a place: {} for the answer that it reads first",
            percent(first)
        ));
    }
    let verdicts = run.oracle.of_sampled();
    if let Some(dependent) = share(verdicts.order_dependent, verdicts.both_orders)
        && dependent > MANY_BY_ORDER
    {
        doubt(format!(
            "which of two answers wins depends on their order in {} of the pairs",
            percent(dependent)
        ));
    }
    if let Some(circles) = share(verdicts.intransitive, verdicts.triples)
        && circles > MANY_CIRCLES
    {
        doubt(format!("the oracle goes round in circles on {} of the triples", percent(circles)));
    }
    let service = |name: &str| run.oracle.service.get(name);
    let invalid = service("invalid_verdicts");
    let asked = service("questions").max(invalid + service("judgments"));
    if invalid > MANY_INVALID * asked {
        doubt(format!("{invalid:.0} replies of the oracle were no verdicts"));
    }
    if let Some((_, probability)) =
        run.oracle.service.labels().filter(|labels| labels.1 < FEW_LABELS)
    {
        doubt(format!(
            "the judge's labels have only {} of its probability: it would say something else",
            percent(probability)
        ));
    }
    doubts
}

/// Other things to know.
fn remarks(run: &RunReport) -> Vec<(Level, String)> {
    let mut remarks = Vec::new();
    let mut remark = |text: String| remarks.push((Level::Note, text));
    if let Some(last) = last(run) {
        if last.report.chosen_log_prob_change.is_some_and(|change| change < 0.0) {
            remark("chosen answers became less likely in the last iteration".into());
        }
        let rates: Vec<f64> =
            run.iterations.iter().filter_map(|one| Some(win_rate(one)?.mean)).collect();
        if let [.., before, after] = rates.as_slice()
            && after < before
        {
            remark(format!(
                "the last iteration lowered the win rate by {}",
                percent(before - after)
            ));
        }
    }
    let prompts: usize = run.iterations.iter().map(|one| one.prompts).sum();
    if let Some(skipped) = share(run.skipped.len(), prompts).filter(|share| *share > MANY_SKIPPED) {
        remark(format!("{} of the prompts gave no pair to train on", percent(skipped)));
    }
    if run.iterations.len() > 1 && run.held_out.is_empty() {
        remark("nothing was compared with the start: there are no held-out answers".into());
    }
    let told = run.notices.iter().map(|notice| (Level::Note, notice.clone()));
    remarks.into_iter().chain(told).collect()
}

/// Mean length of the held-out answers, before and after.
fn lengths(run: &RunReport, last: &IterationSummary) -> Option<(f64, f64)> {
    let before = run.iterations.first()?.report.mean_response_tokens?;
    let after = last.report.mean_response_tokens?;
    (before > 0.0 && after > 0.0).then_some((before, after))
}

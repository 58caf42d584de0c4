//! The outcome of a comparison: every arm against the start and against every other arm.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::evaluation::TournamentReport;
use crate::statistics::Interval;

/// The outcome of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComparisonReport {
    /// The oracle that judged.
    pub judge: String,
    /// Held-out prompts that all runs answered.
    pub prompts: usize,
    /// Answers to each of them.
    pub samples_per_prompt: usize,
    /// Confidence of all intervals, which are over prompts and seeds.
    pub confidence: f64,
    /// The arms, in the order of the axes.
    pub arms: Vec<ArmReport>,
    /// Every two arms after their last iterations.
    pub pairs: Vec<ArmPair>,
    /// All arms after their last iterations and the starting model, each against every other.
    pub tournament: TournamentReport,
}

/// Runs that differ in nothing but their seeds. Numbers are means over these.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArmReport {
    /// Its choices, in words.
    pub name: String,
    /// The settings that they set, by dotted key, in TOML notation.
    pub settings: BTreeMap<String, String>,
    /// The runs.
    pub runs: Vec<RunSummary>,
    /// Its iterations, from 1.
    pub iterations: Vec<ArmIteration>,
    /// Work of one run.
    pub work: Work,
    /// Time of one run, which differs from machine to machine and from one time to the next.
    pub time: Time,
}

/// An iteration of an arm.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArmIteration {
    /// The iteration, from 1.
    pub iteration: u32,
    /// Win rate against the starting model.
    pub win_rate: Interval,
    /// The same at equal length; `None` when length cannot be told from quality.
    pub length_controlled_win_rate: Option<Interval>,
    /// Mean length of the answers, in tokens.
    pub mean_response_tokens: Option<f64>,
    /// Share of the answers that the model ended itself.
    pub ended_share: Option<f64>,
    /// Mean change of the chosen responses' log-probability on the training pairs.
    pub chosen_log_prob_change: Option<f64>,
    /// Mean change of the rejected responses' log-probability on the training pairs.
    pub rejected_log_prob_change: Option<f64>,
    /// Examples trained on.
    pub examples: f64,
}

/// Two arms.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArmPair {
    /// The one arm.
    pub first: String,
    /// The other arm.
    pub second: String,
    /// Mean probability that the first arm's answer is preferred, run by run of the same seed.
    pub win_rate: Interval,
    /// The same at equal length; `None` when length cannot be told from quality.
    pub length_controlled_win_rate: Option<Interval>,
    /// Win rate of the first against the start less that of the second, prompt by prompt.
    pub difference_against_start: Interval,
}

/// Amount of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Work {
    /// Tokens that were sampled to train on.
    pub sampled_tokens: f64,
    /// Tokens that went through the policy in training.
    pub trained_tokens: f64,
    /// Optimiser steps.
    pub optimizer_steps: f64,
}

/// Time that was spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Time {
    /// Seconds in all, without work that another run of the comparison had done.
    pub seconds: f64,
    /// Seconds of these in optimiser steps.
    pub training_seconds: f64,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunSummary {
    /// Its name.
    pub name: String,
    /// Its seed.
    pub seed: u64,
    /// Its directory, within that of the comparison.
    pub directory: PathBuf,
    /// Win rate against the start after the last iteration, with its interval over prompts.
    pub win_rate: Interval,
}

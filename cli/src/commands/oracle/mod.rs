//! `sppo oracle check`: an oracle against labelled pairs.

mod show;

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use sppo_core::datasets::read_labelled_pairs;
use sppo_core::observer::{Observer, Observers};
use sppo_core::oracle_quality::{OracleCheck, ServiceCounters, ServiceMeter};

use super::session::Setup;
use crate::args::{OracleCheckArguments, OracleCommand};
use crate::failure::Result;
use crate::interrupt;
use crate::output;
use crate::settings::Flags;
use crate::terminal::Terminal;

pub(super) fn oracle(command: &OracleCommand, terminal: &Terminal) -> Result<()> {
    match command {
        OracleCommand::Check(arguments) => check(arguments, terminal),
    }
}

/// An oracle's check, and what it took.
#[derive(Debug, Serialize)]
struct CheckReport {
    file: PathBuf,
    oracle: String,
    #[serde(flatten)]
    check: OracleCheck,
    /// The confidence of all intervals.
    confidence: f64,
    /// Counters of the service that was asked; empty without one.
    service: ServiceCounters,
    /// Money that the service took, by `preference.prices`; `null` without prices.
    cost: Option<f64>,
    seconds: f64,
}

fn check(arguments: &OracleCheckArguments, terminal: &Terminal) -> Result<()> {
    let flags = Flags::of(&[&arguments.settings, &arguments.oracle, &arguments.backend])?;
    let config = arguments.settings.resolve(flags)?.config;
    let mut pairs = read_labelled_pairs(&arguments.pairs, &config.prompts.columns)?;
    pairs.truncate(arguments.limit.map_or(usize::MAX, |limit| limit as usize));

    let setup = Setup::new(config, terminal)?;
    let meter = ServiceMeter::default();
    let observers: [&dyn Observer; 2] = [setup.display(), &meter];
    let observer = Observers(&observers);
    let session = setup.observed_by(&observer);
    let mut oracle = session.oracle()?;
    interrupt::watch();
    let started = Instant::now();
    let verdicts = session.judge_labelled(oracle.as_mut(), &pairs)?;
    let seconds = started.elapsed().as_secs_f64();
    let service = meter.counters();
    let report = CheckReport {
        file: arguments.pairs.clone(),
        oracle: setup.describe_oracle(oracle.as_ref()),
        check: OracleCheck::of(&verdicts, &session.bootstrap()),
        confidence: setup.config.evaluation.confidence,
        cost: service.cost(&setup.config.preference.prices),
        service,
        seconds,
    };
    if arguments.report.json { output::json(&report) } else { show::print(&report, terminal) }
}

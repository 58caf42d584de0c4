//! `sppo compare`: runs that differ in some settings, played, judged and tabled.

mod plan;
mod show;

use sppo_core::comparison::{ComparisonDirectory, ComparisonReport, PlayedCell, Referee, share};
use sppo_core::run_directory::RunDirectory;
use sppo_core::self_play::RunInputs;
use sppo_core::{Error, Result as CoreResult};
use sppo_report::comparison_page;

use super::run::{self, PlayOptions};
use super::session::Setup;
use crate::args::CompareArguments;
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::output;
use crate::terminal::{Terminal, counted};
use plan::{ComparisonPlan, PlannedRun};

pub(super) fn compare(arguments: &CompareArguments, terminal: &Terminal) -> Result<()> {
    if arguments.settings.processes.is_some() {
        let message = "a comparison works in one process";
        return Err(Error::configuration("--processes", message).with_hint("leave it out").into());
    }
    let plan = ComparisonPlan::new(arguments)?;
    if arguments.dry_run {
        return show::plan(&plan, arguments.report.json, terminal);
    }
    let directory = ComparisonDirectory::open(&plan.directory)?;
    let name = plan.directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    interrupt::watch();
    let report = play_and_judge(plan, arguments, &directory, terminal)?;
    let file = directory.write(&report)?;
    let page = directory.page();
    comparison_page(&name, &report).write(&page)?;
    if arguments.report.json {
        return output::json(&report);
    }
    show::report(&report, terminal)?;
    terminal.note(&format!("wrote {}\n{}", file.display(), page.display()));
    Ok(())
}

fn play_and_judge(
    plan: ComparisonPlan,
    arguments: &CompareArguments,
    directory: &ComparisonDirectory,
    terminal: &Terminal,
) -> Result<ComparisonReport> {
    let setup = Setup::new(plan.judge, terminal)?;
    let session = setup.session();
    // Whatever is wrong with the judge is found out before anything is played; a model that it loads takes
    // no memory meanwhile.
    session.try_oracle(session.oracle()?.as_mut())?;
    let played = play(plan.runs, arguments, terminal)?;
    let mut oracle = session.oracle()?;
    let judge = setup.describe_oracle(oracle.as_ref());
    let verdicts = directory.verdicts();
    let mut referee = Referee::new(session, oracle.as_mut(), judge, &verdicts)?;
    referee.compare(&played).map_err(|error| run::stopped(error, run::typed_command(), terminal))
}

/// Plays all runs, or what is left of them.
fn play(
    runs: Vec<PlannedRun>,
    arguments: &CompareArguments,
    terminal: &Terminal,
) -> Result<Vec<PlayedCell>> {
    let options = PlayOptions {
        offline: arguments.model.offline,
        ignore_memory: arguments.ignore_memory,
        go_on: Some(run::typed_command()),
    };
    let (mut played, mut failures): (Vec<PlayedCell>, Vec<(String, Failure)>) = Default::default();
    let count = runs.len();
    for (number, PlannedRun { cell, mut plan }) in (1..).zip(runs) {
        terminal.note(&format!("run {number} of {count}"));
        let mut take_over = |directory: &mut RunDirectory, inputs: &RunInputs| {
            played.iter().try_for_each(|donor| take_over_from(donor, directory, inputs, terminal))
        };
        match run::play(&mut plan, &options, &mut take_over, terminal) {
            Ok(_) => played.push(PlayedCell { cell, config: plan.config }),
            Err(stopped @ Failure::Stopped { .. }) => return Err(stopped),
            // The others are worth their time, whatever becomes of this one.
            Err(failure) => {
                failure.explain(terminal);
                failures.push((cell.name, failure));
            }
        }
    }
    let names: Vec<&str> = failures.iter().map(|(name, _)| name.as_str()).collect();
    if !names.is_empty() {
        terminal.note(&format!(
            "there is no outcome without these runs: {}; give the command again when what stopped them is \
             mended, or take them out of the comparison",
            names.join(", ")
        ));
    }
    failures.into_iter().next().map_or(Ok(played), |(_, failure)| Err(failure))
}

fn take_over_from(
    donor: &PlayedCell,
    directory: &mut RunDirectory,
    inputs: &RunInputs,
    terminal: &Terminal,
) -> CoreResult<()> {
    let copied = share(directory, &donor.config.run_path(), inputs)?;
    if copied > 0 {
        terminal.note(&format!("{} taken over from {}", counted(copied, "file"), donor.cell.name));
    }
    Ok(())
}

//! `sppo report`: runs as a page to look at.

use std::path::{Path, PathBuf};

use sppo_core::Error;
use sppo_report::{RunReader, RunReport, run_page};

use super::run::REPORT_FILE_NAME;
use crate::args::RunReportArguments;
use crate::failure::Result;
use crate::output;

pub(super) fn report(arguments: &RunReportArguments) -> Result<()> {
    let directories: Vec<PathBuf> = arguments
        .runs
        .iter()
        .map(|run| find_run(run, &arguments.run_directory))
        .collect::<Result<_>>()?;
    let mut reports = Vec::with_capacity(directories.len());
    for directory in &directories {
        reports.push(RunReader::new(directory).read()?);
    }
    if arguments.report.json {
        return output::json(&reports);
    }
    name_apart(&mut reports);
    let page = match (&arguments.output, directories.as_slice()) {
        (Some(file), _) => file.clone(),
        (None, [directory]) => directory.join(REPORT_FILE_NAME),
        (None, _) => REPORT_FILE_NAME.into(),
    };
    run_page(&reports).write(&page)?;
    output::line(&page.display().to_string())
}

/// The directory of a run, which is named by its path or by its name among all runs.
pub(super) fn find_run(run: &Path, all: &Path) -> Result<PathBuf> {
    let candidates = [run.to_path_buf(), all.join(run)];
    let found = candidates.into_iter().find(|directory| directory.join("run.json").is_file());
    match found {
        Some(directory) => Ok(directory),
        None => Err(Error::run_directory(run, "there is no run here")
            .with_hint("name a directory with a run.json, or a run within --run-directory")
            .into()),
    }
}

/// Runs of the same name are told apart by their directories.
fn name_apart(reports: &mut [RunReport]) {
    let names: Vec<String> = reports.iter().map(|report| report.name().to_owned()).collect();
    for report in reports {
        if names.iter().filter(|name| *name == report.name()).count() > 1 {
            report.name_by_directory();
        }
    }
}

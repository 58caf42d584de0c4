//! `sppo push`: a checkpoint with its card to the Hugging Face hub.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sppo_core::Error;
use sppo_core::model_card::{MODEL_CARD, Publication};
use sppo_core::self_play::RunRecord;
use sppo_model::checkpoint::source::{ModelSourceOptions, cache_directory};
use sppo_model::hub::{self, HubAccess, PushTarget, UploadFile, Watch};
use sppo_report::win_rate_picture;

use super::report::find_run;
use super::run::REPORT_FILE_NAME;
use crate::args::PushArguments;
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::output;
use crate::terminal::Terminal;

const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Name of the card's picture in the repository.
const PICTURE: &str = "win-rate.svg";
/// Name of the base model in the configuration of adapters.
const BASE_KEY: &str = "base_model_name_or_path";

pub(super) fn push(arguments: &PushArguments, terminal: &Terminal) -> Result<()> {
    let source = Source::find(arguments)?;
    let access = HubAccess::from_environment();
    let target = target(arguments, &source);
    let repository = hub::resolve_repository(&access, &target)?;
    let files = source.files(arguments, &repository.1)?;
    terminal.note(&format!(
        "{} to {}/{}, branch {}",
        source.checkpoint.display(),
        access.endpoint,
        repository.1,
        target.revision
    ));
    interrupt::watch();
    let display = terminal.upload();
    let watch = Watch {
        progress: &|progress| display.show(&progress),
        is_cancelled: &interrupt::requested,
    };
    let pushed = hub::push(&access, &target, repository, &files, &watch).map_err(stopped)?;
    drop(display);
    for path in &pushed.removed {
        terminal.note(&format!("took away {path}, which an earlier push left there"));
    }
    if pushed.commit.is_none() {
        terminal.note("the repository holds all of it already");
    }
    match arguments.report.json {
        true => output::json(&pushed),
        false => output::line(&pushed.url),
    }
}

fn target(arguments: &PushArguments, source: &Source) -> PushTarget {
    let version = env!("CARGO_PKG_VERSION");
    let message = match &source.run {
        Some((run, iteration)) => {
            format!("{}, iteration {iteration}, by sppo {version}", run.identity().config.name)
        }
        None => format!("Upload by sppo {version}"),
    };
    let cache = cache_directory(&ModelSourceOptions::default()).ok();
    PushTarget {
        repository: arguments.repo.clone(),
        revision: arguments.revision.clone(),
        private: arguments.private,
        message,
        state_directory: cache.map(|cache| cache.join("uploads")),
    }
}

/// Advice after an interruption: the same command goes on.
fn stopped(error: hub::HubError) -> Failure {
    match error {
        hub::HubError::Cancelled => Failure::Stopped { go_on: Some("the same command".into()) },
        other => other.into(),
    }
}

/// A checkpoint to upload, and the run and iteration that it is of, if it is of one.
struct Source {
    checkpoint: PathBuf,
    run: Option<(RunRecord, u32)>,
}

impl Source {
    fn find(arguments: &PushArguments) -> Result<Self> {
        let path = &arguments.source;
        if holds_a_model(path) {
            return Self::of_directory(path, arguments.iteration);
        }
        let run = RunRecord::open(find_run(path, &arguments.run_directory)?)?;
        let Some(iteration) = arguments.iteration.or_else(|| run.last_iteration()) else {
            return Err(Error::run_directory(run.root(), "no iteration is finished yet")
                .with_hint("wait for the first checkpoint, or go on with `sppo run --resume`")
                .into());
        };
        Self::of_run(run, iteration)
    }

    fn of_directory(path: &Path, iteration: Option<u32>) -> Result<Self> {
        if iteration.is_some() {
            let message = "is for runs, and this is a checkpoint";
            return Err(Error::configuration("--iteration", message)
                .with_hint("leave it out, or name the run")
                .into());
        }
        match RunRecord::of_checkpoint(path) {
            Some((run, iteration)) => Self::of_run(run, iteration),
            None => Ok(Self { checkpoint: path.to_path_buf(), run: None }),
        }
    }

    fn of_run(run: RunRecord, iteration: u32) -> Result<Self> {
        let Some(checkpoint) = run.checkpoint(iteration)? else {
            let message = format!(
                "the checkpoint of iteration {iteration} is not there, or is not as the run wrote it"
            );
            return Err(Error::run_directory(run.root(), message)
                .with_hint("choose another --iteration, or make it again with `sppo run --resume`")
                .into());
        };
        Ok(Self { checkpoint, run: Some((run, iteration)) })
    }

    /// The files of the checkpoint, as they are to be in the repository.
    fn files(&self, arguments: &PushArguments, repository: &str) -> Result<Vec<UploadFile>> {
        let mut files = UploadFile::of_directory(&self.checkpoint)?;
        if let Some((run, iteration)) = &self.run {
            let page = run.root().join(REPORT_FILE_NAME);
            let report_page = arguments.with_report.then(|| REPORT_FILE_NAME.to_owned());
            if report_page.is_some() {
                replace(&mut files, UploadFile::of_path(REPORT_FILE_NAME, &page)?);
            }
            let picture = win_rate_picture(&run.reports(*iteration)?);
            if let Some(picture) = &picture {
                replace(&mut files, UploadFile::of_text(PICTURE, picture));
            }
            let publication = Publication {
                repository: Some(repository.into()),
                base_model: arguments.base_model.clone(),
                license: arguments.license.clone(),
                datasets: arguments.dataset.clone(),
                picture: picture.map(|_| PICTURE.to_owned()),
                report_page,
            };
            let card = run.model_card(*iteration, publication)?;
            replace(&mut files, UploadFile::of_text(MODEL_CARD, &card));
        } else {
            self.refuse_facts_for_a_card(arguments)?;
        }
        if let Some(config) = self.adapter_config(arguments)? {
            replace(&mut files, UploadFile::of_text(ADAPTER_CONFIG, &config));
        }
        Ok(files)
    }

    /// The card of a directory that is of no run stays as it is.
    fn refuse_facts_for_a_card(&self, arguments: &PushArguments) -> Result<()> {
        let given = [
            ("--with-report", arguments.with_report),
            ("--license", arguments.license.is_some()),
            ("--dataset", !arguments.dataset.is_empty()),
        ];
        match given.iter().find(|(_, is_given)| *is_given) {
            None => Ok(()),
            Some((flag, _)) => Err(Error::configuration(
                *flag,
                format!("is for the checkpoint of a run; this is {}", self.checkpoint.display()),
            )
            .with_hint(format!("leave it out, and write {MODEL_CARD} into the directory"))
            .into()),
        }
    }

    /// The configuration of adapters with a base model that others can find; `None` for a whole model, and for
    /// adapters that name such a one.
    fn adapter_config(&self, arguments: &PushArguments) -> Result<Option<String>> {
        let file = self.checkpoint.join(ADAPTER_CONFIG);
        if !file.is_file() {
            return Ok(None);
        }
        let unreadable = |cause: String| Failure::from(Error::input(&file, cause));
        let text = std::fs::read(&file).map_err(|error| unreadable(error.to_string()))?;
        let mut config: Value =
            serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
        let named = config.get(BASE_KEY).and_then(Value::as_str).unwrap_or_default();
        let is_here = Path::new(named).is_absolute() || Path::new(named).exists();
        if named.ends_with(".gguf") {
            let message =
                format!("these adapters belong to {named}, and Python's peft loads no such file");
            return Err(Error::input(&file, message)
                .with_hint("push the result of `sppo merge`")
                .into());
        }
        let known = self.run.as_ref().and_then(|(run, _)| run.identity().model.hub_id.clone());
        let base = match (&arguments.base_model, known) {
            (Some(given), _) => given.clone(),
            (None, _) if !is_here => return Ok(None),
            (None, Some(known)) => known,
            (None, None) => {
                let message = format!("these adapters belong to {named}, a model on this machine");
                return Err(Error::input(&file, message)
                    .with_hint("name it with --base-model, or push the result of `sppo merge`")
                    .into());
            }
        };
        let settings = config.as_object_mut();
        let settings =
            settings.ok_or_else(|| unreadable("holds no settings of adapters".into()))?;
        settings.insert(BASE_KEY.into(), base.into());
        serde_json::to_string_pretty(&config)
            .map(Some)
            .map_err(|error| unreadable(error.to_string()))
    }
}

/// Whether a directory holds weights or adapters.
fn holds_a_model(directory: &Path) -> bool {
    ["config.json", ADAPTER_CONFIG].iter().any(|file| directory.join(file).is_file())
}

/// Puts a file in the place of that of the same name, or at the end.
fn replace(files: &mut Vec<UploadFile>, file: UploadFile) {
    files.retain(|other| other.path != file.path);
    files.push(file);
}

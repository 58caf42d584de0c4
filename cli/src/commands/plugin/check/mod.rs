//! `sppo plugin check`: does a plugin do what every plugin of its kind must?

mod gradients;
mod known_answers;

use sppo_core::Error;
use sppo_core::config::Config;
use sppo_core::observer::SilentObserver;
use sppo_core::plugin::conformance::{Finding, Outcome, check_backend, check_oracle};
use sppo_core::plugin::{PluginError, PluginKind};
use sppo_core::plugins::{PluginEntry, PluginRegistry};
use sppo_core::session::Session;

use crate::args::ReportArguments;
use crate::failure::{Failure, Result};
use crate::models::{self, LocalModel};
use crate::output;
use crate::terminal::Terminal;

pub(super) fn check(
    config: &Config,
    plugins: &PluginRegistry,
    entry: &PluginEntry,
    report: ReportArguments,
    terminal: &Terminal,
) -> Result<()> {
    let Some(manifest) = entry.manifest() else { return Ok(()) };
    let findings = match manifest.kind {
        PluginKind::ORACLE => {
            let backend = models::backend(plugins, config)?;
            let observer = &SilentObserver;
            let backend = backend.as_ref();
            let session = Session { config, plugins, backend, observer, lent_policy: None };
            let host = session.host();
            let settings = config.oracle.settings_of(&manifest.name);
            let mut create = |settings| {
                plugins.create_oracle(&manifest.name, settings).map_err(|error| error.to_string())
            };
            let mut findings = check_oracle(&mut create, &settings, &host);
            if manifest.name == known_answers::ORACLE {
                findings.push(known_answers::check(&mut create, settings, &host));
            }
            findings
        }
        PluginKind::BACKEND => {
            let model = LocalModel::find(&config.model, config, false, terminal)?.path;
            let scratch = tempfile::tempdir().map_err(Failure::Output)?;
            let settings = config.backend.settings_of(&manifest.name);
            let backend = plugins.create_backend(&manifest.name, settings.clone())?;
            let mut create = |settings| {
                plugins.create_backend(&manifest.name, settings).map_err(|error| error.to_string())
            };
            let mut findings = check_backend(&mut create, &settings, &model, scratch.path());
            findings.push(gradients::check(backend.as_ref(), &model, scratch.path()));
            findings
        }
        kind => {
            let message = format!("there are no checks of a {}", kind.name());
            return Err(Error::configuration("NAME", message).into());
        }
    };
    if report.json {
        output::json(&findings)?;
    } else {
        output::text(&table(&findings, terminal))?;
    }
    let failures = findings.iter().filter(|finding| finding.is_failure()).count();
    if failures == 0 {
        terminal.note(&format!("{} does what it must", manifest.label()));
        return Ok(());
    }
    let message = format!("{failures} of {} checks failed", findings.len());
    let error = PluginError::failed(message)
        .with_hint("docs/writing-a-plugin.md says what is asked of a plugin");
    Err(Error::of_plugin(manifest.label(), error).into())
}

fn table(findings: &[Finding], terminal: &Terminal) -> String {
    let style = terminal.stdout_style();
    let line = |Finding { check, outcome }: &Finding| match outcome {
        Outcome::Passed => format!("ok      {check}\n"),
        Outcome::Remark(remark) => format!("{}  {check}: {remark}\n", style.yellow("remark")),
        Outcome::Failed(reason) => format!("{}  {check}: {reason}\n", style.red("FAILED")),
    };
    findings.iter().map(line).collect()
}

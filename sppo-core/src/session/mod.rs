//! One piece of work: settings, plugins, a backend, and an observer, shared by all of its stages.
//!
//! The loop and the commands speak the same sentences through a [`Session`]: it loads policies, readies
//! the oracle, and runs each stage as one that its observer can follow. It commits nothing; what a stage
//! makes is kept by its caller.

mod lent_policy;
mod progress;
mod stages;

use std::path::Path;

pub use lent_policy::LentPolicy;
pub use progress::{StageHost, StageMeter};
pub use stages::TrainingSummary;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::observer::{Observer, Stage};
use crate::plugin::{Backend, Candidate, Comparison, Message, Oracle, Policy, PolicySpec};
use crate::plugins::PluginRegistry;
use crate::stages::{PairRule, refuse_scores};
use crate::win_rate::Preferences;

/// Shared inputs of all stages. It is cheap to copy, so that a part of the work can have another observer:
/// `Session { observer, ..session }`.
#[derive(Clone, Copy)]
pub struct Session<'a> {
    /// All settings.
    pub config: &'a Config,
    /// The plugins that these settings may name.
    pub plugins: &'a PluginRegistry,
    /// Loads policies and scorers.
    pub backend: &'a dyn Backend,
    /// Follows the stages, and may stop them.
    pub observer: &'a dyn Observer,
    /// The place of the policy while it is lent to the oracle; `None` where no policy is trained.
    pub lent_policy: Option<&'a LentPolicy<'a>>,
}

impl<'a> Session<'a> {
    /// The oracle that the settings name, ready to judge.
    ///
    /// # Errors
    /// When there is none of this name, its settings are refused, or it could not judge.
    pub fn oracle(&self) -> Result<Box<dyn Oracle>> {
        let table = &self.config.oracle;
        let mut oracle = self.plugins.create_oracle(&table.name, table.chosen_settings())?;
        let host = self.host();
        oracle.prepare(&host, &host)?;
        Ok(oracle)
    }

    /// Asks an oracle that asks a service to compare two short answers, so that whatever is wrong with its key,
    /// its model's name, its parameters or its limits is found out before anything is sampled. Other oracles
    /// are not asked.
    ///
    /// # Errors
    /// When the oracle cannot judge the answers.
    pub fn try_oracle(&self, oracle: &mut dyn Oracle) -> Result<()> {
        match oracle.expected_requests(1, 2) {
            Some(_) => self.ask_in_a_trial(oracle).map(drop),
            None => Ok(()),
        }
    }

    /// As [`Self::try_oracle`], before a run: also asks other oracles, where the settings do not suit all of them. One
    /// that asks the policy is not asked: the policy is lent to it while it judges responses.
    ///
    /// # Errors
    /// When the oracle cannot judge the answers, or not in the way of the settings.
    pub fn try_oracle_for_training(&self, oracle: &mut dyn Oracle) -> Result<()> {
        match self.config.preference.pairs {
            PairRule::All => self.try_oracle(oracle),
            _ if self.lent_policy.is_some_and(LentPolicy::is_wanted) => Ok(()),
            _ => refuse_scores(&self.ask_in_a_trial(oracle)?),
        }
    }

    fn ask_in_a_trial(&self, oracle: &mut dyn Oracle) -> Result<Vec<Preferences>> {
        let answers = ["4", "It may well be 5."];
        let question = Comparison {
            prompt: [Message::user("What is 2 + 2?")].into(),
            rendered_prompt: None,
            candidates: answers.map(Candidate::from_text).into(),
        };
        let settings = &self.config.preference;
        crate::stages::judge(oracle, &[question], settings, &self.host()).map_err(in_a_trial)
    }

    /// Loads a model that is only sampled from and scored.
    ///
    /// # Errors
    /// When the model cannot be read or does not fit.
    pub fn load(&self, path: &Path) -> Result<Box<dyn Policy>> {
        let template_variables = self.config.template_variables_json();
        self.load_policy(&PolicySpec { template_variables, ..PolicySpec::new(path) })
    }

    /// Loads a model to train what the settings say: all of its weights, or adapters.
    ///
    /// # Errors
    /// As [`Self::load`], or when the backend cannot train in this way.
    pub fn load_for_training(&self, path: &Path) -> Result<Box<dyn Policy>> {
        self.load_policy(&self.config.policy_spec(path.to_path_buf()))
    }

    fn load_policy(&self, spec: &PolicySpec) -> Result<Box<dyn Policy>> {
        let meter = self.stage(Stage::Load, 1, "model");
        let policy = self.backend.load_policy(spec)?;
        meter.finish(spec.path.display().to_string());
        Ok(policy)
    }

    /// Begins a stage of `total` units, for instance `tokens`.
    #[must_use]
    pub fn stage(&self, stage: Stage, total: u64, unit: &'static str) -> StageMeter<'a> {
        StageMeter::start(*self, stage, total, unit)
    }

    /// The host of a call that belongs to no stage.
    #[must_use]
    pub fn host(&self) -> StageHost<'a> {
        StageHost::new(*self, 0, 1)
    }

    /// # Errors
    /// [`Error::Cancelled`] when the observer asks to stop.
    pub(crate) fn require_running(&self) -> Result<()> {
        if self.observer.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// The error of an oracle that was tried before the work, told as such.
fn in_a_trial(mut error: Error) -> Error {
    if let Error::Plugin { source, .. } = &mut error {
        source.message =
            format!("asked a test question before anything is sampled: {}", source.message);
    }
    error
}

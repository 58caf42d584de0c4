//! Checks of a configuration: each section's own, and what sections ask of each other.

use super::Config;
use crate::plugin::check::{self, Check};
use crate::selection::SelectionStrategy;

impl Config {
    /// Checks everything that does not depend on which plugins there are.
    ///
    /// # Errors
    /// Names the key at fault.
    pub(super) fn check(&self) -> Check {
        self.check_run()?;
        self.sampling.check().map_err(|refusal| refusal.within("sampling"))?;
        self.preference.check().map_err(|refusal| refusal.within("preference"))?;
        self.training.check().map_err(|refusal| refusal.within("training"))?;
        self.check_selection()?;
        self.evaluation.check().map_err(|refusal| refusal.within("evaluation"))
    }

    fn check_run(&self) -> Check {
        let plain = !matches!(self.name.as_str(), "" | "." | "..")
            && !self.name.contains(['/', '\\', '\0'])
            && !self.name.starts_with('.');
        check::require(
            plain,
            "name",
            format!("`{}` cannot be the name of a directory", self.name),
            "use letters, digits, `-` and `_`; the parent directory is `run_directory`",
        )?;
        check::require(
            !self.model.is_empty(),
            "model",
            "is empty",
            "name a model, a directory or a file",
        )?;
        check::at_least_one("iterations", self.iterations.into())?;
        check::require(
            i64::try_from(self.seed).is_ok(),
            "seed",
            format!("{} does not fit a TOML integer", self.seed),
            "give a number below 2^63",
        )
    }

    /// As many responses must be selected as the objective takes.
    fn check_selection(&self) -> Check {
        let selected = match self.selection.strategy {
            SelectionStrategy::BestAndWorst => 2,
            SelectionStrategy::All => self.sampling.samples_per_prompt,
        };
        check::require(
            self.training.objective.requires().responses.is_none_or(|number| number == selected),
            "selection.strategy",
            "`all` trains on every answer, and the objective compares two",
            "set `training.objective = \"sppo_all\"`, or `selection.strategy = \"best-and-worst\"`",
        )
    }
}

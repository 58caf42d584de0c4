//! Model cards: the `README.md` of a checkpoint, which the Hugging Face hub shows.
//!
//! A card is made from the identity of a run and the reports of its iterations alone. It holds no time, no path and
//! no name of a machine: a checkpoint that is made again, there or elsewhere, is the same to the byte.

mod body;
mod metadata;

use std::fmt::Write as _;

pub use metadata::declared_license;

use crate::observer::IterationReport;
use crate::run_directory::RunIdentity;

/// Name of a card within a checkpoint.
pub const MODEL_CARD: &str = "README.md";

/// Facts about a checkpoint that its card shows.
#[derive(Clone, Debug)]
pub struct ModelCard<'a> {
    /// Settings, model and plugins of the run.
    pub identity: &'a RunIdentity,
    /// The iteration that the checkpoint is the result of.
    pub iteration: u32,
    /// Reports of this iteration and those before it, as far as they are there; 0 is the starting model.
    pub reports: &'a [IterationReport],
    /// Facts that only the user can know.
    pub publication: Publication,
}

/// Facts about a published checkpoint that its run does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Publication {
    /// Id of the repository, `owner/name`.
    pub repository: Option<String>,
    /// Hub id of the model that self-play started from; by default the run's.
    pub base_model: Option<String>,
    /// Identifier of the licence, as the hub spells it; by default the base model's.
    pub license: Option<String>,
    /// Hub ids of the data sets that the prompts come from.
    pub datasets: Vec<String>,
    /// Name of a picture of the win rates in the repository, if it is there.
    pub picture: Option<String>,
    /// Name of the report's page in the repository, if it is there.
    pub report_page: Option<String>,
}

impl ModelCard<'_> {
    /// The card as Markdown with YAML metadata.
    #[must_use]
    pub fn render(&self) -> String {
        let mut card = metadata::render(self);
        let sections = [
            body::introduction(self),
            body::quick_start(self),
            body::results(self),
            body::training(self),
            body::citation(),
        ];
        for section in sections {
            let _ = write!(card, "\n{section}");
        }
        card
    }

    /// Whether the checkpoint holds adapters in place of whole weights.
    fn has_adapters(&self) -> bool {
        self.identity.config.training.lora.rank > 0
    }

    fn base_model(&self) -> Option<&str> {
        let given = self.publication.base_model.as_deref();
        given.or(self.identity.model.hub_id.as_deref())
    }

    fn license(&self) -> Option<&str> {
        self.publication.license.as_deref().or(self.identity.model.license.as_deref())
    }
}

#[cfg(test)]
mod tests;

//! Named sets of settings.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// A named set of settings, a layer between the defaults and the user's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// A small model on a small machine, within minutes.
    Quick,
    /// The settings of the paper's released code (`scripts/` of uclaml/SPPO).
    Official,
    /// The settings of the paper's text (arXiv 2405.00675), where they differ from the code's.
    Paper,
}

impl Preset {
    /// All presets.
    pub const ALL: [Self; 3] = [Self::Quick, Self::Official, Self::Paper];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Official => "official",
            Self::Paper => "paper",
        }
    }

    /// Its settings, a commented TOML document.
    #[must_use]
    pub fn toml(self) -> &'static str {
        match self {
            Self::Quick => include_str!("presets/quick.toml"),
            Self::Official => include_str!("presets/official.toml"),
            Self::Paper => include_str!("presets/paper.toml"),
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
            Error::configuration("preset", format!("there is no preset named `{name}`"))
                .with_hint(format!("choose one of: {}", Self::ALL.map(Self::name).join(", ")))
        })
    }
}

//! The origin of a model: its name, its revision, and its path on this machine.

use std::path::PathBuf;

use serde::Serialize;

/// The name of the default model.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";
/// The default model on the hub.
pub(super) const DEFAULT_MODEL_HUB_ID: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

/// Options of looking for a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelSourceOptions {
    /// Use only what is on this machine.
    pub offline: bool,
    /// Directory of fetched models; by default `$SPPO_CACHE`, else `$XDG_CACHE_HOME/sppo`, else
    /// `~/.cache/sppo`. Models of the hub are kept in the hub's own cache, which other tools share.
    pub cache_dir: Option<PathBuf>,
}

/// Origin of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelOrigin {
    /// A path that the user gave.
    Local,
    /// The Hugging Face hub, or its cache on this machine.
    Hub,
    /// A Python package that carries the model.
    PythonPackage,
}

/// Identity of a resolved model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelSourceIdentity {
    /// The name that the user gave.
    pub name: String,
    /// The hub's commit, or the version of the Python package.
    pub revision: Option<String>,
    /// Its origin.
    pub source: ModelOrigin,
}

/// A model on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedModel {
    /// A model directory or a `.gguf` file.
    pub path: PathBuf,
    /// Its identity.
    pub identity: ModelSourceIdentity,
}

impl ResolvedModel {
    /// Its id on the Hugging Face hub, if it is known to be a model of the hub.
    #[must_use]
    pub fn hub_id(&self) -> Option<&str> {
        let ModelSourceIdentity { name, source, .. } = &self.identity;
        match source {
            ModelOrigin::Local => None,
            _ if name == DEFAULT_MODEL => Some(DEFAULT_MODEL_HUB_ID),
            ModelOrigin::Hub => Some(name),
            ModelOrigin::PythonPackage => None,
        }
    }
}

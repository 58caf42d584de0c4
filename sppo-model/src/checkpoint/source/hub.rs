//! Models of the Hugging Face hub, in the hub's own cache.

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;

use super::origin::{ModelOrigin, ModelSourceIdentity, ModelSourceOptions, ResolvedModel};
use crate::error::{ModelError, Result};
use crate::hub::{
    CachedRepository, HubAccess, HubError, RemoteFile, TransferProgress, download, encoded,
    hub_cache,
};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// A download is given up when nothing has arrived for this long.
const STALL_LIMIT: Duration = Duration::from_secs(60);

/// Small files that a model may have.
const TEXT_FILES: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "README.md",
];
const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// The hub's description of a revision.
#[derive(Debug, Deserialize)]
struct RevisionInfo {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

/// A failure of the hub to describe a revision.
enum Refusal {
    /// It cannot be reached; the cache may help.
    Unreachable(String),
    /// It answered, and the answer is no.
    Answer(ModelError),
}

/// Finds a model in the cache or fetches it; `name` is what the user called it.
pub(super) fn find(
    name: &str,
    id: &str,
    revision: Option<&str>,
    options: &ModelSourceOptions,
    progress: &dyn Fn(TransferProgress),
) -> Result<ResolvedModel> {
    let revision = revision.unwrap_or("main");
    if !is_revision(revision) {
        return Err(ModelError::file(id, format!("`{revision}` cannot be a revision")));
    }
    let access = HubAccess::from_environment();
    let cache = hub_cache().ok_or_else(|| {
        ModelError::file(id, "there is no home directory to keep it in")
            .with_hint("name a directory in the environment variable HF_HOME")
    })?;
    let offline = options.offline || access.offline;
    let source = HubModel { name, id, revision, access, cached: CachedRepository::new(&cache, id) };
    if offline {
        return source.cached().ok_or_else(|| {
            ModelError::file(id, format!("revision {revision} is not in the cache ({}), and offline mode fetches nothing", cache.display()))
                .with_hint("run once without offline mode")
        });
    }
    match source.info() {
        Ok(info) => source.fetch(&info, progress),
        Err(Refusal::Answer(error)) => Err(error),
        Err(Refusal::Unreachable(cause)) => match source.cached() {
            Some(found) => {
                tracing::warn!("the hub cannot be reached ({cause}); using {id} from the cache");
                Ok(found)
            }
            None => Err(ModelError::file(id, format!("the hub cannot be reached: {cause}"))
                .with_hint("check the network (HF_ENDPOINT names a mirror), or give a model directory or a .gguf file")),
        },
    }
}

struct HubModel<'a> {
    name: &'a str,
    id: &'a str,
    revision: &'a str,
    access: HubAccess,
    cached: CachedRepository,
}

impl HubModel<'_> {
    fn resolved(&self, path: PathBuf, commit: &str) -> ResolvedModel {
        ResolvedModel {
            path,
            identity: ModelSourceIdentity {
                name: self.name.to_string(),
                revision: Some(commit.to_string()),
                source: ModelOrigin::Hub,
            },
        }
    }

    /// The revision's snapshot in the cache, if its configuration is there.
    fn cached(&self) -> Option<ResolvedModel> {
        let commit = self.cached.commit_of(self.revision);
        let commit = commit.unwrap_or_else(|| self.revision.to_string());
        if !is_commit(&commit) {
            return None;
        }
        let snapshot = self.cached.snapshot(&commit);
        let complete = snapshot.join("config.json").is_file()
            && [SINGLE_FILE, INDEX_FILE].iter().any(|file| snapshot.join(file).is_file());
        complete.then(|| self.resolved(snapshot, &commit))
    }

    /// Asks the hub which files the revision has. One attempt with short limits, so that a closed
    /// network does not keep anybody waiting.
    fn info(&self) -> std::result::Result<RevisionInfo, Refusal> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_resolve(Some(CONNECT_LIMIT))
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_global(Some(ANSWER_LIMIT))
            .build()
            .into();
        let HubAccess { endpoint, token, .. } = &self.access;
        let revision = encoded(self.revision);
        let mut request =
            agent.get(format!("{endpoint}/api/models/{}/revision/{revision}", self.id));
        if let Some(token) = token {
            request = request.header("Authorization", token.header());
        }
        let mut response = request.call().map_err(|error| self.refusal(error))?;
        let info: RevisionInfo =
            response.body_mut().read_json().map_err(|error| self.refusal(error))?;
        if is_commit(&info.sha) {
            Ok(info)
        } else {
            Err(Refusal::Answer(ModelError::file(self.id, "the hub's answer names no commit")))
        }
    }

    fn refusal(&self, error: ureq::Error) -> Refusal {
        let (message, hint) = match error {
            ureq::Error::StatusCode(401 | 403) => (
                "the hub knows no such public model, or you have no access to it".to_string(),
                "check the name; for a gated model accept its terms and set HF_TOKEN",
            ),
            ureq::Error::StatusCode(404) => (
                format!("the hub has no such model, or it has no revision `{}`", self.revision),
                "check the name and the revision",
            ),
            other => return Refusal::Unreachable(other.to_string()),
        };
        Refusal::Answer(ModelError::file(self.id, message).with_hint(hint))
    }

    /// Fetches the files that are not yet in the cache.
    fn fetch(
        &self,
        info: &RevisionInfo,
        progress: &dyn Fn(TransferProgress),
    ) -> Result<ResolvedModel> {
        let names: Vec<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
        let files = wanted_files(self.id, &names)?;
        let snapshot = self.cached.snapshot(&info.sha);
        for file in files {
            if !snapshot.join(file).is_file() {
                self.download(&info.sha, file, progress)?;
            }
        }
        // lets the offline mode, here and in Python, find the commit by the revision's name
        self.cached
            .set_commit(self.revision, &info.sha)
            .map_err(|error| ModelError::file(&snapshot, error.to_string()))?;
        Ok(self.resolved(snapshot, &info.sha))
    }

    /// Downloads one file on a thread of its own: no limit of time is set for a content, only for the pauses
    /// in it.
    fn download(
        &self,
        commit: &str,
        file: &str,
        progress: &dyn Fn(TransferProgress),
    ) -> Result<()> {
        let failed = |cause: String| {
            ModelError::file(self.id, format!("{file} cannot be fetched: {cause}"))
                .with_hint("run again: the download goes on where it stopped")
        };
        let (sender, receiver) = mpsc::channel();
        let (access, cached) = (self.access.clone(), self.cached.clone());
        let remote = RemoteFile { id: self.id.into(), commit: commit.into(), path: file.into() };
        std::thread::Builder::new()
            .name("download".into())
            .spawn(move || {
                // nobody listens any more when the caller gave up
                let outcome = download(&access, &cached, &remote, &mut |done, total| {
                    let _ = sender.send(Event::Received(done, total));
                });
                let _ = sender.send(Event::Finished(outcome));
            })
            .map_err(|error| failed(error.to_string()))?;
        loop {
            match receiver.recv_timeout(STALL_LIMIT) {
                Ok(Event::Received(done, total)) => {
                    progress(TransferProgress { file: file.to_string(), done, total });
                }
                Ok(Event::Finished(outcome)) => {
                    return outcome.map_err(|error| failed(error.to_string()));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(failed(format!(
                        "nothing arrived for {} seconds",
                        STALL_LIMIT.as_secs()
                    )));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(failed("the hub's answer is malformed".into()));
                }
            }
        }
    }
}

enum Event {
    /// Bytes so far, and in all.
    Received(u64, Option<u64>),
    Finished(std::result::Result<(), HubError>),
}

/// The files of a model that we read; never pickled ones.
fn wanted_files<'a>(id: &str, names: &[&'a str]) -> Result<Vec<&'a str>> {
    let has = |name: &str| names.contains(&name);
    let mut files: Vec<&str> =
        names.iter().copied().filter(|name| TEXT_FILES.contains(name)).collect();
    let refused = |message: &str, hint: &str| Err(ModelError::file(id, message).with_hint(hint));
    if !has("config.json") {
        return refused(
            "has no config.json on the hub",
            "for a repository of GGUF files, download one and give its path",
        );
    }
    if has(SINGLE_FILE) {
        files.extend(names.iter().copied().filter(|name| *name == SINGLE_FILE));
    } else if has(INDEX_FILE) {
        let shard = |name: &&str| {
            name.starts_with("model-") && name.ends_with(".safetensors") && !name.contains('/')
        };
        files.extend(names.iter().copied().filter(|name| *name == INDEX_FILE || shard(name)));
    } else {
        return refused(
            "has no safetensors weights on the hub; pickled weights are never read",
            "look for a revision with safetensors (often `refs/pr/1`), or convert the model",
        );
    }
    Ok(files)
}

fn is_revision(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(['-', '/', '.'])
        && !text.contains("..")
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c))
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.chars().all(|c| c.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_we_read_are_fetched() {
        let names = [
            ".gitattributes",
            "config.json",
            "tokenizer.json",
            "pytorch_model.bin",
            "model.safetensors",
            "onnx/model.onnx",
            "evil.py",
            "../config.json",
            "runs/model-1.safetensors",
        ];
        let files = wanted_files("org/name", &names).unwrap();
        assert_eq!(files, ["config.json", "tokenizer.json", "model.safetensors"]);
        let sharded = [
            "config.json",
            INDEX_FILE,
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        assert_eq!(wanted_files("org/name", &sharded).unwrap(), sharded);
        for (names, expected) in [
            (vec!["config.json", "pytorch_model.bin"], "pickled"),
            (vec!["model.Q4.gguf"], "no config.json"),
        ] {
            let error = wanted_files("org/name", &names).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_cached_snapshot_is_found_by_branch_and_by_commit() {
        let directory = tempfile::tempdir().unwrap();
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let folder = directory.path().join("models--org--name");
        let snapshot = folder.join("snapshots").join(commit);
        fs_err::create_dir_all(&snapshot).unwrap();
        fs_err::create_dir_all(folder.join("refs")).unwrap();
        fs_err::write(folder.join("refs/main"), commit).unwrap();
        let find = |revision| {
            let (name, access) = ("org/name", HubAccess::from_environment());
            let cached = CachedRepository::new(directory.path(), name);
            HubModel { name, id: name, revision, access, cached }.cached()
        };
        assert_eq!(find("main"), None, "an empty snapshot is not a model");
        fs_err::write(snapshot.join("config.json"), "{}").unwrap();
        fs_err::write(snapshot.join(SINGLE_FILE), "").unwrap();
        for revision in ["main", commit] {
            let found = find(revision).unwrap();
            assert_eq!(
                (found.path, found.identity.revision),
                (snapshot.clone(), Some(commit.into()))
            );
        }
        assert_eq!(find("v2"), None);
        assert!(is_revision("refs/pr/1") && !is_revision("../x") && !is_revision("a b"));
    }
}

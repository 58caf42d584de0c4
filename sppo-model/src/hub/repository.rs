//! A repository of models on the hub: made, looked at, and committed to.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Answer, Call, Client, JSON, JSON_LINES, to_json};
use super::error::{HubError, Result};
use super::files::UploadFile;

/// Files that the hub is asked about at once.
const FILES_PER_REQUEST: usize = 256;

/// The branch of a repository, by the client of its hub.
pub(super) struct Repository<'a> {
    pub(super) client: &'a Client<'a>,
    /// `owner/name`.
    pub(super) id: String,
    pub(super) revision: String,
}

/// The way that a file takes to the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum UploadMode {
    /// Within the commit.
    Regular,
    /// To the storage of large files, by its hash.
    Lfs,
}

/// The hub's answer about a file that is to be uploaded.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Placement {
    path: String,
    pub(super) upload_mode: UploadMode,
    /// Whether the repository's `.gitignore` leaves it out.
    #[serde(default)]
    pub(super) should_ignore: bool,
    /// Hash of the file that is there: of git, or SHA-256 of a large file.
    pub(super) oid: Option<String>,
}

#[derive(Deserialize)]
struct Placements {
    files: Vec<Placement>,
}

#[derive(Deserialize)]
struct Account {
    name: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

/// A commit on the hub.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Committed {
    pub(super) commit_url: String,
    pub(super) commit_oid: String,
}

/// One change of a commit.
#[derive(Clone, Debug)]
pub(super) enum Change<'a> {
    /// A file within the commit.
    Regular(&'a UploadFile),
    /// A large file by its SHA-256.
    Large { file: &'a UploadFile, sha256: &'a str },
    /// A file that is taken away.
    Deleted(&'a str),
}

/// The name of the account that the token belongs to.
pub(super) fn account(client: &Client<'_>) -> Result<String> {
    const DOING: &str = "the question whose token this is";
    let answer = client.ask_once(Call::Get, "/api/whoami-v2")?;
    match answer.status {
        401 | 403 => Err(HubError::WrongToken),
        _ if answer.is_success() => Ok(answer.json::<Account>(DOING)?.name),
        _ => Err(client.refusal(&answer, "", DOING)),
    }
}

impl<'a> Repository<'a> {
    /// Makes the repository, and the branch, where they are not there yet.
    pub(super) fn ensure(&self, account: &str, private: bool) -> Result<()> {
        self.ensure_repository(account, private)?;
        if self.revision != "main" {
            self.ensure_branch()?;
        }
        Ok(())
    }

    fn ensure_repository(&self, account: &str, private: bool) -> Result<()> {
        const DOING: &str = "to create the repository";
        let (owner, name) = self.id.split_once('/').unwrap_or((account, &self.id));
        let organization = if owner == account { Value::Null } else { owner.into() };
        let body = json!({
            "type": "model",
            "name": name,
            "organization": organization,
            "private": private,
        });
        let answer = self.client.ask(Call::Post(&to_json(&body), JSON), "/api/repos/create")?;
        match answer.status {
            _ if answer.is_success() => Ok(()),
            409 => Ok(()),
            // A token may be allowed to write to a repository that it may not create.
            401..=403 if self.exists()? => Ok(()),
            _ => Err(self.refusal(&answer, DOING)),
        }
    }

    fn exists(&self) -> Result<bool> {
        let answer = self.client.ask(Call::Get, &format!("/api/models/{}", self.id))?;
        Ok(answer.is_success())
    }

    fn ensure_branch(&self) -> Result<()> {
        let path = format!("/api/models/{}/branch/{}", self.id, encoded(&self.revision));
        let answer = self.client.ask(Call::Post(b"{}", JSON), &path)?;
        match answer.status {
            _ if answer.is_success() => Ok(()),
            409 => Ok(()),
            _ => Err(self.refusal(&answer, "to make the branch")),
        }
    }

    /// Asks about every file which way it takes, in their order.
    pub(super) fn placements(&self, files: &[UploadFile]) -> Result<Vec<Placement>> {
        let mut placements = Vec::with_capacity(files.len());
        for files in files.chunks(FILES_PER_REQUEST) {
            placements.extend(self.placements_of(files)?);
        }
        Ok(placements)
    }

    fn placements_of(&self, files: &[UploadFile]) -> Result<Vec<Placement>> {
        const DOING: &str = "the question which files it takes";
        let mut asked = Vec::with_capacity(files.len());
        for file in files {
            let sample = BASE64_STANDARD.encode(file.sample()?);
            asked.push(json!({ "path": file.path, "sample": sample, "size": file.size() }));
        }
        let body = to_json(&json!({ "files": asked }));
        let path = format!("/api/models/{}/preupload/{}", self.id, encoded(&self.revision));
        let answer = self.client.ask(Call::Post(&body, JSON), &path)?;
        if !answer.is_success() {
            return Err(self.refusal(&answer, DOING));
        }
        let told: Placements = answer.json(DOING)?;
        let of_file = |file: &UploadFile| {
            let mut placement = told.files.iter().find(|told| told.path == file.path)?.clone();
            if file.size() == 0 {
                // The storage of large files takes no empty ones.
                placement.upload_mode = UploadMode::Regular;
            }
            Some(placement)
        };
        files.iter().map(|file| of_file(file).ok_or(HubError::Malformed(DOING))).collect()
    }

    /// Files at the top of the repository.
    pub(super) fn listing(&self) -> Result<Vec<String>> {
        const DOING: &str = "the question which files are there";
        let path = format!("/api/models/{}/tree/{}", self.id, encoded(&self.revision));
        let answer = self.client.ask(Call::Get, &path)?;
        if !answer.is_success() {
            return Err(self.refusal(&answer, DOING));
        }
        let entries: Vec<Entry> = answer.json(DOING)?;
        let files = entries.into_iter().filter(|entry| entry.kind == "file");
        Ok(files.map(|entry| entry.path).collect())
    }

    /// Commits all changes at once. It is sent once: a commit whose answer is lost must not be made twice.
    pub(super) fn commit(&self, message: &str, changes: &[Change<'_>]) -> Result<Committed> {
        const DOING: &str = "the commit";
        let mut lines = to_json(&json!({
            "key": "header",
            "value": { "summary": message, "description": "" },
        }));
        for change in changes {
            lines.push(b'\n');
            lines.extend(to_json(&change.to_line()?));
        }
        let path = format!("/api/models/{}/commit/{}", self.id, encoded(&self.revision));
        let answer = self.client.ask_once(Call::Post(&lines, JSON_LINES), &path)?;
        match answer.is_success() {
            true => answer.json(DOING),
            false => Err(self.refusal(&answer, DOING)),
        }
    }

    pub(super) fn refusal(&self, answer: &Answer, doing: &'static str) -> HubError {
        self.client.refusal(answer, &self.id, doing)
    }
}

impl Change<'_> {
    fn to_line(&self) -> Result<Value> {
        Ok(match self {
            Self::Regular(file) => json!({
                "key": "file",
                "value": {
                    "path": file.path,
                    "content": BASE64_STANDARD.encode(file.bytes()?),
                    "encoding": "base64",
                },
            }),
            Self::Large { file, sha256 } => json!({
                "key": "lfsFile",
                "value": { "path": file.path, "algo": "sha256", "oid": sha256, "size": file.size() },
            }),
            Self::Deleted(path) => json!({ "key": "deletedFile", "value": { "path": path } }),
        })
    }
}

/// A text as one segment of an address.
pub(crate) fn encoded(text: &str) -> String {
    let mut path = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                path.push(char::from(byte));
            }
            other => path.push_str(&format!("%{other:02X}")),
        }
    }
    path
}

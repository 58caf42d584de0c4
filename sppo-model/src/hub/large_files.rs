//! The storage of large files: Git LFS's batch protocol, with the hub's way to send a file in parts.
//!
//! The hub names an address for each object that it lacks. An object goes there in one piece, or in parts, each to
//! an address of its own, after which the hub is told that all of them are there.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Answer, Call, Client, JSON, LFS_JSON, to_json};
use super::error::{HubError, Result};
use super::files::UploadFile;
use super::parts::{PartsUnderWay, SavedParts};
use super::push::TransferProgress;
use super::repository::Repository;

/// Objects that the hub is asked about at once.
const OBJECTS_PER_REQUEST: usize = 100;
const BATCH: &str = "the question which large files it lacks";
const UPLOAD: &str = "the upload of a large file";

/// A large file to upload.
#[derive(Clone, Debug)]
pub(super) struct LargeFile<'a> {
    pub(super) file: &'a UploadFile,
    pub(super) sha256: &'a str,
}

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

/// The hub's answer about an object.
#[derive(Deserialize)]
struct Object {
    oid: String,
    /// Missing where the hub has the object.
    actions: Option<Actions>,
    error: Option<ObjectError>,
}

#[derive(Deserialize)]
struct ObjectError {
    code: u16,
    message: String,
}

#[derive(Deserialize)]
struct Actions {
    upload: Action,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, Value>,
}

/// Uploads of large files to a repository.
pub(super) struct LargeFiles<'a> {
    pub(super) repository: &'a Repository<'a>,
    pub(super) progress: &'a dyn Fn(TransferProgress),
    pub(super) is_cancelled: &'a dyn Fn() -> bool,
    /// Parts that earlier processes have sent.
    pub(super) saved: SavedParts,
}

impl<'a> LargeFiles<'a> {
    /// Uploads those that the hub lacks; returns the bytes that it had already.
    pub(super) fn upload(&self, files: &[LargeFile<'a>]) -> Result<u64> {
        let mut there = 0;
        for files in files.chunks(OBJECTS_PER_REQUEST) {
            let mut objects = self.batch(files)?;
            for large in files {
                let Some(place) = objects.iter().position(|object| object.oid == large.sha256)
                else {
                    // Two files of the same content are one object.
                    continue;
                };
                let object = objects.swap_remove(place);
                if let Some(ObjectError { code: status, message }) = object.error {
                    return Err(HubError::Refused { doing: UPLOAD, status, message });
                }
                match object.actions {
                    Some(actions) => self.send(large, &actions)?,
                    None => there += large.file.size(),
                }
            }
        }
        Ok(there)
    }

    fn batch(&self, files: &[LargeFile<'_>]) -> Result<Vec<Object>> {
        let object =
            |large: &LargeFile<'_>| json!({ "oid": large.sha256, "size": large.file.size() });
        let body = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": files.iter().map(object).collect::<Vec<_>>(),
            "hash_algo": "sha256",
            "ref": { "name": self.repository.revision },
        });
        let path = format!("/{}.git/info/lfs/objects/batch", self.repository.id);
        let answer = self.client().ask(Call::Post(&to_json(&body), LFS_JSON), &path)?;
        self.accept(&answer, BATCH)?;
        Ok(answer.json::<Batch>(BATCH)?.objects)
    }

    fn send(&self, large: &LargeFile<'a>, actions: &Actions) -> Result<()> {
        match part_size(&actions.upload)? {
            Some(part_size) => self.send_parts(large, &actions.upload, part_size)?,
            None => self.send_whole(large, &actions.upload)?,
        }
        let Some(verify) = &actions.verify else { return Ok(()) };
        let body = to_json(&json!({ "oid": large.sha256, "size": large.file.size() }));
        let url = self.client().access.at_endpoint(&verify.href);
        let answer = self.client().ask_at(Call::Post(&body, JSON), &url)?;
        self.accept(&answer, "to confirm a large file")
    }

    fn send_whole(&self, large: &LargeFile<'a>, action: &Action) -> Result<()> {
        let text =
            |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
        let headers: Vec<_> = action.header.iter().filter_map(text).collect();
        let url = self.client().access.at_endpoint(&action.href);
        let answer = self.put(large, &url, &headers, 0, large.file.size())?;
        self.accept(&answer, UPLOAD)
    }

    /// Sends the parts that are missing: of an upload that an earlier process began, as long as the storage knows
    /// it, else of the one that the hub has just opened.
    fn send_parts(&self, large: &LargeFile<'a>, action: &Action, part_size: u64) -> Result<()> {
        let opened = self.opened(large, action, part_size)?;
        if let Some(mut begun) = self.saved.load(large.sha256)
            && begun.is_like(&opened)
        {
            tracing::info!("{}: going on after {} parts", large.file.path, begun.sent());
            match self.finish_parts(large, &mut begun) {
                Err(HubError::Refused { status: 400..=499, .. }) => {
                    tracing::info!(
                        "{}: the storage has given up the parts; sending all of them again",
                        large.file.path
                    );
                }
                outcome => return outcome,
            }
        }
        let mut opened = opened;
        self.finish_parts(large, &mut opened)
    }

    fn opened(
        &self,
        large: &LargeFile<'_>,
        action: &Action,
        part_size: u64,
    ) -> Result<PartsUnderWay> {
        let mut addresses: Vec<(u64, &str)> = action
            .header
            .iter()
            .filter_map(|(number, url)| Some((number.parse().ok()?, url.as_str()?)))
            .collect();
        addresses.sort_unstable();
        if addresses.len() as u64 != large.file.size().div_ceil(part_size) {
            return Err(HubError::Malformed(BATCH));
        }
        let client = self.client();
        let completion = client.access.at_endpoint(&action.href);
        let addresses = addresses.into_iter().map(|(_, url)| url.to_owned());
        Ok(PartsUnderWay::new(&client.access.endpoint, part_size, completion, addresses))
    }

    fn finish_parts(&self, large: &LargeFile<'a>, parts: &mut PartsUnderWay) -> Result<()> {
        while let Some((number, url)) = parts.next() {
            let start = number as u64 * parts.part_size;
            let length = parts.part_size.min(large.file.size() - start);
            let answer = self.put(large, &url, &[], start, length)?;
            self.accept(&answer, UPLOAD)?;
            parts.finish(number, answer.etag.ok_or(HubError::Malformed(UPLOAD))?);
            self.saved.save(large.sha256, parts);
        }
        let body = to_json(&parts.completion_of(large.sha256));
        let answer = self.client().ask_at(Call::Post(&body, LFS_JSON), &parts.completion)?;
        self.accept(&answer, UPLOAD)?;
        self.saved.forget(large.sha256);
        Ok(())
    }

    fn put(
        &self,
        large: &LargeFile<'a>,
        url: &str,
        headers: &[(String, String)],
        start: u64,
        length: u64,
    ) -> Result<Answer> {
        let file = large.file;
        let sent = |count: u64| {
            let done = start + count;
            (self.progress)(TransferProgress {
                file: file.path.clone(),
                done,
                total: Some(file.size()),
            });
        };
        self.client()
            .put(url, headers, length, &|| file.part(start, length, &sent, self.is_cancelled))
    }

    fn accept(&self, answer: &Answer, doing: &'static str) -> Result<()> {
        match (answer.is_success(), answer.status) {
            (true, _) => Ok(()),
            // Storage that is not the hub's own knows no token.
            (false, status) if doing == UPLOAD => {
                Err(HubError::Refused { doing, status, message: answer.message() })
            }
            (false, _) => Err(self.repository.refusal(answer, doing)),
        }
    }

    fn client(&self) -> &Client<'a> {
        self.repository.client
    }
}

/// Size of the parts that an object is to be sent in; `None` for one piece.
fn part_size(action: &Action) -> Result<Option<u64>> {
    let Some(value) = action.header.get("chunk_size") else { return Ok(None) };
    let size = value.as_u64().or_else(|| value.as_str()?.parse().ok());
    size.filter(|size| *size > 0).map(Some).ok_or(HubError::Malformed(BATCH))
}

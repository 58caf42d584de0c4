//! Downloads into the hub's cache. An interrupted one goes on where it stopped, and what arrived is compared with
//! its hash before it gets its name.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use ureq::http::Response;
use ureq::{Agent, Body};

use super::access::{HubAccess, Token};
use super::cache::CachedRepository;
use super::client::{refused, unreachable};
use super::error::{HubError, Result};
use crate::formats::files::file_sha256;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 5;
const DOING: &str = "the download";
const BUFFER_BYTES: usize = 1 << 20;

/// A file of a commit.
#[derive(Clone, Debug)]
pub(crate) struct RemoteFile {
    /// `owner/name`.
    pub(crate) id: String,
    pub(crate) commit: String,
    /// Path in the repository.
    pub(crate) path: String,
}

/// The place and the hash of a file's content, as the hub tells them.
struct Location {
    url: String,
    /// SHA-256 of a large file, SHA-1 of git of another.
    hash: String,
    size: Option<u64>,
}

/// Fetches a file into the cache. `received` is told the bytes so far and in all, where known. No limit of time is set
/// for the content: whoever waits may give up.
///
/// # Errors
/// When the hub has no such file, cannot be reached, or sends something else than it announced.
pub(crate) fn download(
    access: &HubAccess,
    cache: &CachedRepository,
    file: &RemoteFile,
    received: &mut dyn FnMut(u64, Option<u64>),
) -> Result<()> {
    let agent = agent();
    let location = locate(&agent, access, file)?;
    let blob = cache.blob(&location.hash);
    if !blob.is_file() {
        fetch(&agent, access, file, &location, &blob, received)?;
    }
    cache.link(&location.hash, &file.commit, &file.path).map_err(|cause| unwritable(&blob, cause))
}

fn agent() -> Agent {
    Agent::config_builder()
        .user_agent(concat!("sppo/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(CONNECT_LIMIT))
        .timeout_connect(Some(CONNECT_LIMIT))
        .timeout_recv_response(Some(ANSWER_LIMIT))
        .max_redirects(0)
        .http_status_as_error(false)
        .build()
        .into()
}

/// Asks where the content is. A repository that was renamed is followed on the hub itself; the redirect to the storage
/// of large files is the answer.
fn locate(agent: &Agent, access: &HubAccess, file: &RemoteFile) -> Result<Location> {
    let RemoteFile { id, commit, path } = file;
    let mut url = format!("{}/{id}/resolve/{commit}/{path}", access.endpoint);
    for _ in 0..MAX_REDIRECTS {
        let mut request = agent.head(&url).header("Accept-Encoding", "identity");
        if let Some(token) = token_for(access, &url) {
            request = request.header("Authorization", token.header());
        }
        let response = request.call().map_err(unreachable)?;
        let status = response.status().as_u16();
        let target = header(&response, "location");
        match (status, target) {
            (200..=299, _) => return location(&response, url),
            (300..=399, Some(target)) if target.starts_with('/') => {
                url = format!("{}{target}", access.endpoint);
            }
            (300..=399, Some(target)) => return location(&response, access.at_endpoint(&target)),
            (status, _) => return Err(refused(status, String::new(), id, DOING)),
        }
    }
    Err(HubError::Malformed(DOING))
}

fn location(response: &Response<Body>, url: String) -> Result<Location> {
    let first = |names: [&str; 2]| names.into_iter().find_map(|name| header(response, name));
    let tag = first(["x-linked-etag", "etag"]).ok_or(HubError::Malformed(DOING))?;
    let hash = tag.trim_start_matches("W/").trim_matches('"').to_owned();
    // It becomes the name of a file.
    if hash.is_empty() || !hash.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(HubError::Malformed(DOING));
    }
    let size = first(["x-linked-size", "content-length"]).and_then(|text| text.parse().ok());
    Ok(Location { url, hash, size })
}

/// Fetches the content beside its place, and gives it its name when it is whole.
fn fetch(
    agent: &Agent,
    access: &HubAccess,
    file: &RemoteFile,
    location: &Location,
    blob: &Path,
    received: &mut dyn FnMut(u64, Option<u64>),
) -> Result<()> {
    let partial = blob.with_extension("incomplete");
    let failed = |cause| unwritable(&partial, cause);
    if let Some(directory) = blob.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    let mut output = OpenOptions::new().create(true).append(true).open(&partial).map_err(failed)?;
    // Another process may be fetching the same.
    output.lock().map_err(failed)?;
    if blob.is_file() {
        return Ok(());
    }
    append(agent, access, file, location, &mut output, received)?;
    check(file, location, &partial)?;
    output.sync_all().and_then(|()| std::fs::rename(&partial, blob)).map_err(failed)
}

/// Fetches what is missing at the end of a file.
fn append(
    agent: &Agent,
    access: &HubAccess,
    file: &RemoteFile,
    location: &Location,
    output: &mut File,
    received: &mut dyn FnMut(u64, Option<u64>),
) -> Result<()> {
    let failed = |cause| unwritable(Path::new(&file.path), cause);
    let mut done = output.metadata().map_err(failed)?.len();
    if location.size.is_some_and(|size| done > size) {
        output.set_len(0).map_err(failed)?;
        done = 0;
    }
    received(done, location.size);
    if location.size == Some(done) {
        return Ok(());
    }
    let mut request = agent.get(&location.url).header("Accept-Encoding", "identity");
    if done > 0 {
        request = request.header("Range", format!("bytes={done}-"));
    }
    if let Some(token) = token_for(access, &location.url) {
        request = request.header("Authorization", token.header());
    }
    let mut response = request.call().map_err(unreachable)?;
    match response.status().as_u16() {
        206 => {}
        // The whole content, from a server that knows no ranges.
        200 => {
            output.set_len(0).map_err(failed)?;
            done = 0;
        }
        status => return Err(refused(status, String::new(), &file.id, DOING)),
    }
    let mut content = response.body_mut().as_reader();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = content.read(&mut buffer).map_err(|error| unreachable(error.into()))?;
        let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else { break };
        output.write_all(chunk).map_err(failed)?;
        done += count as u64;
        received(done, location.size);
    }
    Ok(())
}

/// Compares what arrived with what was announced; something else is removed, so that the next attempt begins anew.
fn check(file: &RemoteFile, location: &Location, partial: &Path) -> Result<()> {
    let size = partial.metadata().map_err(|cause| unwritable(partial, cause))?.len();
    if location.size.is_some_and(|expected| size < expected) {
        return Err(HubError::Unreachable(format!("{} arrived in part only", file.path)));
    }
    let is_sha256 = location.hash.len() == 64;
    let is_same = location.size.is_none_or(|expected| size == expected)
        && (!is_sha256 || file_sha256(partial).is_ok_and(|hash| hash == location.hash));
    if is_same {
        return Ok(());
    }
    std::fs::remove_file(partial).map_err(|cause| unwritable(partial, cause))?;
    Err(HubError::Damaged)
}

fn token_for<'a>(access: &'a HubAccess, url: &str) -> Option<&'a Token> {
    access.token.as_ref().filter(|_| access.is_own(url))
}

fn header(response: &Response<Body>, name: &str) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}

fn unwritable(path: &Path, cause: io::Error) -> HubError {
    HubError::File { path: path.into(), cause }
}

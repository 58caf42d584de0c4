//! A hub on this machine that speaks the protocol of uploads and downloads, remembers what it was asked, and fails on
//! request.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

/// The token of the account `me`.
pub(crate) const TOKEN: &str = "hf_the_only_token";
/// The only commit that downloads are of.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Files above this size go to the storage in parts of it.
pub(crate) const PART_BYTES: usize = 100_000;

/// A failure of requests whose first line begins with a text.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) at: &'static str,
    /// Requests that pass before.
    pub(crate) after: usize,
    /// Requests that fail.
    pub(crate) times: usize,
    pub(crate) kind: FaultKind,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum FaultKind {
    /// An answer with this status.
    Status(u16),
    /// The connection is closed without an answer.
    Drop,
    /// The connection is closed after half of the content.
    Cut,
    /// A byte of the content is another.
    Alter,
    /// No answer comes while the hub lives.
    Hang,
}

#[derive(Default)]
struct State {
    /// Files by repository, branch and path.
    repositories: BTreeMap<String, BTreeMap<String, BTreeMap<String, Vec<u8>>>>,
    /// Large files by their SHA-256.
    storage: HashMap<String, Vec<u8>>,
    /// Parts by upload.
    parts: HashMap<String, BTreeMap<usize, Vec<u8>>>,
    uploads: usize,
    commits: usize,
    requests: Vec<String>,
    faults: Vec<Fault>,
}

/// The hub; it serves until the test ends.
#[derive(Clone)]
pub(crate) struct Hub {
    address: String,
    state: Arc<Mutex<State>>,
}

struct Request {
    line: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn ok(body: Value) -> Self {
        Self { status: 200, headers: Vec::new(), body: body.to_string().into() }
    }

    fn refusal(status: u16, message: &str) -> Self {
        Self { status, ..Self::ok(json!({ "error": message })) }
    }

    fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }
}

impl Hub {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let hub = Self { address, state: Arc::default() };
        let serving = hub.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let hub = serving.clone();
                thread::spawn(move || hub.serve(stream));
            }
        });
        hub
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// From now on, requests fail in this way alone.
    pub(crate) fn fail(&self, faults: &[Fault]) {
        self.state.lock().unwrap().faults = faults.to_vec();
    }

    /// First lines of the requests since the last call.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    pub(crate) fn has_been_asked(&self, line: &str, times: usize) -> bool {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|request| request.starts_with(line)).count() >= times
    }

    /// Puts a file into a repository, which is made if it is not there.
    pub(crate) fn put(&self, repository: &str, path: &str, content: &[u8]) {
        let mut state = self.state.lock().unwrap();
        let branches = state.repositories.entry(repository.into()).or_default();
        branches.entry("main".into()).or_default().insert(path.into(), content.into());
    }

    pub(crate) fn files(&self, repository: &str, branch: &str) -> BTreeMap<String, Vec<u8>> {
        let state = self.state.lock().unwrap();
        state.repositories[repository][branch].clone()
    }

    pub(crate) fn commits(&self) -> usize {
        self.state.lock().unwrap().commits
    }

    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(request) = Request::read(&mut reader) {
            let fault = self.remember(&request.line);
            let mut reply = match fault {
                Some(FaultKind::Drop) => return,
                Some(FaultKind::Hang) => loop {
                    thread::sleep(Duration::from_secs(3600));
                },
                Some(FaultKind::Status(status)) => Reply::refusal(status, "asked to fail"),
                Some(FaultKind::Cut | FaultKind::Alter) | None => self.reply(&request),
            };
            let mut head =
                format!("HTTP/1.1 {} -\r\nContent-Length: {}\r\n", reply.status, reply.body.len());
            for (name, value) in &reply.headers {
                write!(head, "{name}: {value}\r\n").unwrap();
            }
            if let (Some(FaultKind::Alter), Some(byte)) = (fault, reply.body.last_mut()) {
                *byte ^= 1;
            }
            let content = match (request.line.starts_with("HEAD "), fault) {
                (true, _) => &[][..],
                (false, Some(FaultKind::Cut)) => &reply.body[..reply.body.len() / 2],
                (false, _) => &reply.body,
            };
            let sent = [format!("{head}\r\n").as_bytes(), content].concat();
            if writer.write_all(&sent).is_err() || matches!(fault, Some(FaultKind::Cut)) {
                return;
            }
        }
    }

    fn remember(&self, line: &str) -> Option<FaultKind> {
        let mut state = self.state.lock().unwrap();
        state.requests.push(line.into());
        let fault = state.faults.iter_mut().find(|fault| line.starts_with(fault.at))?;
        if fault.after > 0 {
            fault.after -= 1;
            return None;
        }
        fault.times = fault.times.checked_sub(1)?;
        Some(fault.kind)
    }

    fn reply(&self, request: &Request) -> Reply {
        let (method, path) = request.line.split_once(' ').unwrap();
        // Where it is another machine than the hub.
        let is_storage = path.starts_with("/storage/") && method == "PUT";
        let authorization = request.headers.get("authorization");
        if is_storage {
            assert_eq!(authorization, None, "the storage must not see the token");
        } else if authorization.map(String::as_str) != Some(&format!("Bearer {TOKEN}")) {
            return Reply::refusal(401, "Invalid credentials in Authorization header");
        }
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        match (method, segments.as_slice()) {
            ("GET", ["api", "whoami-v2"]) => Reply::ok(json!({ "name": "me" })),
            ("POST", ["api", "repos", "create"]) => self.create(&request.json()),
            ("GET", ["api", "models", owner, name]) => self.info(&format!("{owner}/{name}")),
            ("POST", ["api", "models", owner, name, action, branch]) => {
                let (repository, branch) = (format!("{owner}/{name}"), branch.replace("%2F", "/"));
                match *action {
                    "branch" => self.branch(&repository, &branch),
                    "preupload" => self.preupload(&repository, &branch, &request.json()),
                    "commit" => self.commit(&repository, &branch, &request.body),
                    _ => Reply::refusal(404, "no such route"),
                }
            }
            ("GET", ["api", "models", owner, name, "revision", branch]) => {
                self.revision(&format!("{owner}/{name}"), branch)
            }
            ("HEAD" | "GET", [owner, name, "resolve", COMMIT, path]) => {
                self.resolve(&format!("{owner}/{name}"), path)
            }
            ("GET", ["storage", "content", oid]) => self.content(oid, request.headers.get("range")),
            ("GET", ["api", "models", owner, name, "tree", branch]) => {
                self.tree(&format!("{owner}/{name}"), &branch.replace("%2F", "/"))
            }
            ("POST", [_, repository, "info", "lfs", "objects", "batch"]) => {
                assert!(repository.ends_with(".git"));
                self.batch(&request.json())
            }
            ("POST", ["verify"]) => self.verify(&request.json()),
            ("PUT", ["storage", "whole", oid]) => self.store_whole(oid, &request.body),
            ("PUT", ["storage", "part", upload, number]) => {
                self.store_part(upload, number.parse().unwrap(), &request.body)
            }
            ("POST", ["storage", "complete", upload]) => self.complete(upload, &request.json()),
            _ => Reply::refusal(404, "no such route"),
        }
    }

    fn create(&self, body: &Value) -> Reply {
        assert_eq!(body["type"], "model");
        let owner = body["organization"].as_str().unwrap_or("me");
        if owner == "another" {
            return Reply::refusal(
                403,
                "You don't have the rights to create a model under this namespace",
            );
        }
        let id = format!("{owner}/{}", body["name"].as_str().unwrap());
        let mut state = self.state.lock().unwrap();
        if state.repositories.contains_key(&id) {
            return Reply::refusal(409, "You already created this model repo");
        }
        let main = BTreeMap::from([("main".to_owned(), BTreeMap::new())]);
        state.repositories.insert(id.clone(), main);
        Reply::ok(json!({ "url": format!("{}/{id}", self.address) }))
    }

    fn info(&self, id: &str) -> Reply {
        match self.state.lock().unwrap().repositories.contains_key(id) {
            true => Reply::ok(json!({ "id": id })),
            false => Reply::refusal(404, "Repository not found"),
        }
    }

    fn revision(&self, id: &str, branch: &str) -> Reply {
        let state = self.state.lock().unwrap();
        let files = state.repositories[id][branch].keys();
        let siblings: Vec<Value> = files.map(|path| json!({ "rfilename": path })).collect();
        Reply::ok(json!({ "sha": COMMIT, "siblings": siblings }))
    }

    /// Small files come at once, large ones from the storage.
    fn resolve(&self, id: &str, path: &str) -> Reply {
        let content = self.files(id, "main")[path].clone();
        if !path.ends_with(".safetensors") {
            let etag = format!("\"{}\"", git_oid(&content));
            return Reply { body: content, ..Reply::ok(Value::Null) }.with("ETag", etag);
        }
        let (oid, size) = (sha256(&content), content.len());
        self.state.lock().unwrap().storage.insert(oid.clone(), content);
        Reply { status: 302, ..Reply::ok(Value::Null) }
            .with("Location", format!("{}/storage/content/{oid}", self.address))
            .with("X-Linked-ETag", format!("\"{oid}\""))
            .with("X-Linked-Size", size)
    }

    fn content(&self, oid: &str, range: Option<&String>) -> Reply {
        let content = self.state.lock().unwrap().storage[oid].clone();
        let Some(range) = range else { return Reply { body: content, ..Reply::ok(Value::Null) } };
        let start = range.strip_prefix("bytes=").unwrap().trim_end_matches('-');
        let body = content[start.parse::<usize>().unwrap()..].to_vec();
        self.state.lock().unwrap().requests.push(format!("from byte {start}"));
        Reply { status: 206, body, ..Reply::ok(Value::Null) }
    }

    fn branch(&self, id: &str, branch: &str) -> Reply {
        let mut state = self.state.lock().unwrap();
        let branches = state.repositories.get_mut(id).unwrap();
        if branches.contains_key(branch) {
            return Reply::refusal(409, "Reference already exists");
        }
        let files = branches["main"].clone();
        branches.insert(branch.into(), files);
        Reply::ok(json!({}))
    }

    fn preupload(&self, id: &str, branch: &str, body: &Value) -> Reply {
        if id.starts_with("another/") {
            return Reply::refusal(403, "Forbidden");
        }
        let state = self.state.lock().unwrap();
        let files = &state.repositories[id][branch];
        let place = |file: &Value| {
            let path = file["path"].as_str().unwrap();
            let is_large = path.ends_with(".safetensors");
            let oid = files.get(path).map(|content| match is_large {
                true => sha256(content),
                false => git_oid(content),
            });
            json!({
                "path": path,
                "uploadMode": if is_large { "lfs" } else { "regular" },
                "shouldIgnore": false,
                "oid": oid,
            })
        };
        let files: Vec<Value> = body["files"].as_array().unwrap().iter().map(place).collect();
        Reply::ok(json!({ "files": files }))
    }

    fn batch(&self, body: &Value) -> Reply {
        let mut state = self.state.lock().unwrap();
        let mut objects = Vec::new();
        for object in body["objects"].as_array().unwrap() {
            let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap());
            let mut told = json!({ "oid": oid, "size": size });
            if !state.storage.contains_key(oid) {
                let upload = match size as usize > PART_BYTES {
                    true => {
                        state.uploads += 1;
                        self.in_parts(&format!("upload-{}", state.uploads), size as usize)
                    }
                    false => json!({ "href": format!("{}/storage/whole/{oid}", self.address) }),
                };
                let verify = json!({ "href": format!("{}/verify", self.address) });
                told["actions"] = json!({ "upload": upload, "verify": verify });
            }
            objects.push(told);
        }
        Reply::ok(json!({ "transfer": "multipart", "objects": objects }))
    }

    fn in_parts(&self, upload: &str, size: usize) -> Value {
        let mut header = json!({ "chunk_size": PART_BYTES.to_string() });
        for number in 1..=size.div_ceil(PART_BYTES) {
            let url = format!("{}/storage/part/{upload}/{number}", self.address);
            header[format!("{number:05}")] = url.into();
        }
        json!({ "href": format!("{}/storage/complete/{upload}", self.address), "header": header })
    }

    fn store_whole(&self, oid: &str, content: &[u8]) -> Reply {
        assert_eq!(sha256(content), oid);
        self.state.lock().unwrap().storage.insert(oid.into(), content.into());
        Reply::ok(json!({}))
    }

    fn store_part(&self, upload: &str, number: usize, content: &[u8]) -> Reply {
        let mut state = self.state.lock().unwrap();
        let parts = state.parts.entry(upload.into()).or_default();
        assert!(parts.insert(number, content.into()).is_none(), "part {number} was sent twice");
        Reply::ok(json!({})).with("ETag", format!("\"etag-{upload}-{number}\""))
    }

    fn complete(&self, upload: &str, body: &Value) -> Reply {
        let mut state = self.state.lock().unwrap();
        let parts = state.parts.remove(upload).unwrap_or_default();
        let told = body["parts"].as_array().unwrap();
        let expected = parts.keys().map(
            |number| json!({ "partNumber": number, "etag": format!("\"etag-{upload}-{number}\"") }),
        );
        assert_eq!(*told, expected.collect::<Vec<_>>());
        let content: Vec<u8> = parts.into_values().flatten().collect();
        assert_eq!(sha256(&content), body["oid"].as_str().unwrap());
        state.storage.insert(body["oid"].as_str().unwrap().into(), content);
        Reply::ok(json!({ "success": true }))
    }

    fn verify(&self, body: &Value) -> Reply {
        let state = self.state.lock().unwrap();
        let stored = &state.storage[body["oid"].as_str().unwrap()];
        assert_eq!(stored.len() as u64, body["size"].as_u64().unwrap());
        Reply::ok(json!({}))
    }

    fn tree(&self, id: &str, branch: &str) -> Reply {
        let state = self.state.lock().unwrap();
        let files = state.repositories[id][branch].keys();
        let entries =
            files.map(|path| json!({ "type": "file", "path": path, "size": 1, "oid": "0" }));
        Reply::ok(entries.collect())
    }

    fn commit(&self, id: &str, branch: &str, body: &[u8]) -> Reply {
        let mut state = self.state.lock().unwrap();
        let State { repositories, storage, commits, .. } = &mut *state;
        let files = repositories.get_mut(id).unwrap().get_mut(branch).unwrap();
        for line in std::str::from_utf8(body).unwrap().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let value = &line["value"];
            let path = || value["path"].as_str().unwrap().to_owned();
            match line["key"].as_str().unwrap() {
                "header" => assert!(!value["summary"].as_str().unwrap().is_empty()),
                "file" => {
                    let content = value["content"].as_str().unwrap();
                    files.insert(path(), BASE64_STANDARD.decode(content).unwrap());
                }
                "lfsFile" => {
                    files.insert(path(), storage[value["oid"].as_str().unwrap()].clone());
                }
                "deletedFile" => assert!(files.remove(&path()).is_some()),
                other => panic!("a change of the kind {other}"),
            }
        }
        *commits += 1;
        let oid = format!("{:040}", *commits);
        Reply::ok(
            json!({ "commitUrl": format!("{}/{id}/commit/{oid}", self.address), "commitOid": oid }),
        )
    }
}

impl Request {
    /// The next request of a connection, until it is closed.
    fn read(reader: &mut BufReader<TcpStream>) -> Option<Self> {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
        let line = line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
        let mut headers = HashMap::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            let Some((name, value)) = header.trim_end().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        assert!(!headers.contains_key("transfer-encoding"), "the storage takes no chunks");
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        Some(Self { line, headers, body })
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

fn sha256(content: &[u8]) -> String {
    hexadecimal(&Sha256::digest(content))
}

fn git_oid(content: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", content.len()));
    hash.update(content);
    hexadecimal(&hash.finalize())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

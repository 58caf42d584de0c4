//! Verdicts remembered on disk: a file per judge, to which every verdict is appended before it is used.
//!
//! A line is one JSON object with a key and a verdict, and is written whole. A process that is killed, or
//! a full disk, leaves at most the last line cut short; the next writer ends that line, and readers skip
//! it. Several processes may append to the same file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fs_err as fs;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sppo_plugin::PluginError;

use crate::config::CacheConfig;
use crate::question::{Part, QuestionVerdict};

/// Version of the keys: it changes when equal questions no longer mean equal verdicts.
const FORMAT: u32 = 1;

/// Identifies a question to a judge.
pub(crate) type Key = [u8; 32];

/// Makes keys for the questions to one judge.
#[derive(Clone)]
pub(crate) struct KeyMaker(Sha256);

impl KeyMaker {
    /// `judge` holds everything that verdicts depend on besides the question.
    pub(crate) fn new(judge: &Value) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(format!("{FORMAT} {judge}\n"));
        Self(hasher)
    }

    pub(crate) fn key(&self, part: &Part) -> Key {
        let mut hasher = self.0.clone();
        hasher.update(format!("{}\n{}", part.shared, part.own));
        hasher.finalize().into()
    }

    /// The judge's own file.
    pub(crate) fn file_name(&self) -> String {
        let digest: Key = self.0.clone().finalize().into();
        format!("{}.jsonl", &hexadecimal(&digest)[..16])
    }
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    #[serde(flatten)]
    verdict: QuestionVerdict,
}

/// The verdicts of one judge.
pub(crate) struct Cache {
    known: HashMap<Key, QuestionVerdict>,
    /// Verdicts that are not written yet.
    staged: Vec<(Key, QuestionVerdict)>,
    file: Option<CacheFile>,
}

struct CacheFile {
    path: Arc<Path>,
    file: Arc<File>,
    synced: Instant,
    dirty: bool,
    /// A write failed, perhaps within a line.
    torn: bool,
}

/// A file with verdicts that may not survive a loss of power.
pub(crate) struct Unsynced {
    path: Arc<Path>,
    file: Arc<File>,
}

impl Cache {
    /// Remembers for as long as the process lives.
    pub(crate) fn in_memory() -> Self {
        Self { known: HashMap::new(), staged: Vec::new(), file: None }
    }

    /// Opens the judge's file, or makes it. `about` describes the judge to people who look into it.
    pub(crate) fn open(
        config: &CacheConfig,
        keys: &KeyMaker,
        about: &str,
    ) -> Result<Self, PluginError> {
        if !config.enabled {
            return Ok(Self::in_memory());
        }
        let directory = directory(config)?;
        let path = directory.join(keys.file_name());
        let failed = |error: std::io::Error| unusable(&path, &error);
        fs::create_dir_all(&directory).map_err(failed)?;
        let mut options = fs::OpenOptions::new();
        let opened = options.read(true).append(true).create(true).open(&path).map_err(failed)?;
        let (mut file, _) = opened.into_parts();
        let known = read(&mut file, &path).map_err(failed)?;
        let mut beginning = Vec::new();
        match last_byte(&mut file).map_err(failed)? {
            None => beginning = format!("{}\n", serde_json::json!({"judge": about})).into_bytes(),
            Some(b'\n') => {}
            Some(_) => beginning.push(b'\n'),
        }
        file.write_all(&beginning).map_err(failed)?;
        let file = CacheFile {
            path: path.into(),
            file: Arc::new(file),
            synced: Instant::now(),
            dirty: false,
            torn: false,
        };
        Ok(Self { known, staged: Vec::new(), file: Some(file) })
    }

    /// Whether the judge has answered before, as far as is remembered.
    pub(crate) fn has_answered(config: &CacheConfig, keys: &KeyMaker) -> bool {
        let path = directory(config).map(|directory| directory.join(keys.file_name()));
        let file = path.ok().filter(|_| config.enabled).and_then(|path| File::open(path).ok());
        file.is_some_and(|file| BufReader::new(file).split(b'\n').nth(1).is_some())
    }

    /// Whether nothing is known of the judge.
    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The number of judgments that are known.
    #[cfg(fuzzing)]
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<QuestionVerdict> {
        self.known.get(key).copied()
    }

    /// Takes verdicts that the next [`Self::write_staged`] will write.
    pub(crate) fn stage(&mut self, verdicts: impl IntoIterator<Item = (Key, QuestionVerdict)>) {
        self.staged.extend(verdicts);
    }

    /// Writes the staged verdicts to the file and remembers them. After an error they are still staged.
    pub(crate) fn write_staged(&mut self) -> Result<(), PluginError> {
        if self.staged.is_empty() {
            return Ok(());
        }
        if let Some(target) = &mut self.file {
            let mut lines = Vec::with_capacity(self.staged.len() * 112);
            if target.torn {
                lines.push(b'\n');
            }
            for (key, verdict) in &self.staged {
                let line = Line { key: hexadecimal(key), verdict: *verdict };
                serde_json::to_writer(&mut lines, &line)
                    .map_err(|error| PluginError::failed(error.to_string()))?;
                lines.push(b'\n');
            }
            let mut file = &*target.file;
            target.torn = true;
            file.write_all(&lines).map_err(|error| unusable(&target.path, &error))?;
            target.torn = false;
            target.dirty = true;
        }
        self.known.extend(self.staged.drain(..));
        Ok(())
    }

    /// The file, if it must be synced: it was written to, and last synced at least `interval` ago. Syncing
    /// takes long, so it is not done here, where it would keep others from appending.
    pub(crate) fn take_unsynced(&mut self, interval: Duration) -> Option<Unsynced> {
        let target = self.file.as_mut()?;
        if !target.dirty || target.synced.elapsed() < interval {
            return None;
        }
        target.dirty = false;
        target.synced = Instant::now();
        Some(Unsynced { path: Arc::clone(&target.path), file: Arc::clone(&target.file) })
    }

    /// Takes note that the file could not be synced.
    pub(crate) fn still_unsynced(&mut self) {
        if let Some(target) = &mut self.file {
            target.dirty = true;
        }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.write_staged();
        if let Some(unsynced) = self.take_unsynced(Duration::ZERO) {
            let _ = unsynced.sync();
        }
    }
}

impl Unsynced {
    pub(crate) fn sync(&self) -> Result<(), PluginError> {
        self.file.sync_data().map_err(|error| unusable(&self.path, &error))
    }
}

fn directory(config: &CacheConfig) -> Result<PathBuf, PluginError> {
    config.directory.clone().map_or_else(default_directory, Ok)
}

/// `$SPPO_CACHE`, else `$XDG_CACHE_HOME/sppo`, else `~/.cache/sppo`; in it `oracle-http`.
fn default_directory() -> Result<PathBuf, PluginError> {
    let variable =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = variable("SPPO_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|path| path.join("sppo")))
        .or_else(|| variable("HOME").map(|path| path.join(".cache/sppo")));
    base.map(|path| path.join("oracle-http")).ok_or_else(|| {
        PluginError::configuration("cache.directory: there is no home directory to keep it in")
            .with_hint("set `cache.directory`, or `cache.enabled = false`")
    })
}

fn read(file: &mut File, path: &Path) -> std::io::Result<HashMap<Key, QuestionVerdict>> {
    file.seek(SeekFrom::Start(0))?;
    let mut known = HashMap::new();
    let mut damaged = 0_u64;
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        let first = known.is_empty() && line.starts_with(b"{\"judge\"");
        match parse(&line) {
            Some((key, verdict)) => {
                known.insert(key, verdict);
            }
            None if first || line == b"\n" => {}
            None => damaged += 1,
        }
        line.clear();
    }
    if damaged > 0 {
        tracing::info!("{}: {damaged} lines are damaged and skipped", path.display());
    }
    Ok(known)
}

fn parse(line: &[u8]) -> Option<(Key, QuestionVerdict)> {
    // A line without an end may be cut short within its last number.
    let line = line.strip_suffix(b"\n")?;
    let Line { key, verdict } = serde_json::from_slice(line).ok()?;
    Some((from_hexadecimal(&key)?, verdict)).filter(|_| verdict.is_valid())
}

fn last_byte(file: &mut File) -> std::io::Result<Option<u8>> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(None);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut byte = [0];
    file.read_exact(&mut byte)?;
    Ok(Some(byte[0]))
}

fn unusable(path: &Path, error: &std::io::Error) -> PluginError {
    PluginError::failed(format!("cannot remember judgments in {}: {error}", path.display()))
        .with_hint("make room there, or set `cache.directory` to a place that can be written")
}

fn hexadecimal(key: &Key) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = key.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

fn from_hexadecimal(text: &str) -> Option<Key> {
    let digits: Vec<u8> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|d| d.try_into().ok()))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    bytes.try_into().ok().filter(|_| text.len() == 64)
}

#[cfg(test)]
mod tests;

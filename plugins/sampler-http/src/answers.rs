//! Answers on disk, so that none is asked for twice: not by a process that goes on after another was killed.
//!
//! Each is a line. A line that was cut short is passed over, and everything is forgotten when other weights are
//! sampled from.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use fs_err as fs;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sppo_plugin::{GeneratedResponse, PluginError};

/// Everything that an answer depends on, in 128 bits.
pub(crate) type Key = [u8; 16];

/// The key of a request to weights of this version.
pub(crate) fn key(version: &str, body: &[u8]) -> Key {
    let mut hash = Sha256::new();
    hash.update((version.len() as u64).to_le_bytes());
    hash.update(version);
    hash.update(body);
    let digest: [u8; 32] = hash.finalize().into();
    std::array::from_fn(|index| digest[index])
}

/// The answers of weights of one version.
pub(crate) struct Answers {
    file: fs::File,
    known: HashMap<Key, GeneratedResponse>,
    /// Lines that are to be written.
    staged: String,
}

#[derive(Serialize, Deserialize)]
struct Heading {
    version: String,
}

#[derive(Deserialize)]
struct Line {
    key: String,
    response: GeneratedResponse,
}

/// An answer as a line of the file.
pub(crate) struct AnswerLine(String);

impl AnswerLine {
    pub(crate) fn new(key: &Key, response: &GeneratedResponse) -> Result<Self, PluginError> {
        #[derive(Serialize)]
        struct Line<'a> {
            key: String,
            response: &'a GeneratedResponse,
        }
        in_one_line(&Line { key: hexadecimal(key), response }).map(Self)
    }
}

impl Answers {
    /// Opens the answers in a file, or begins anew where they are those of another version.
    pub(crate) fn open(path: &Path, version: &str) -> Result<Self, PluginError> {
        let known = read(path, version);
        let is_of_version = known.is_some();
        let mut options = fs::OpenOptions::new();
        options.create(true).append(is_of_version).write(true).truncate(!is_of_version);
        let file = options.open(path).map_err(unwritable)?;
        let mut answers = Self { file, known: known.unwrap_or_default(), staged: String::new() };
        // After a line that was cut short, the next one begins on a line of its own.
        answers.staged = match is_of_version {
            true => "\n".into(),
            false => in_one_line(&Heading { version: version.into() })?,
        };
        answers.write_staged()?;
        Ok(answers)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&GeneratedResponse> {
        self.known.get(key)
    }

    /// Takes an answer, which is on disk after the next [`Self::write_staged`].
    pub(crate) fn stage(&mut self, line: &AnswerLine) {
        self.staged += &line.0;
    }

    pub(crate) fn write_staged(&mut self) -> Result<(), PluginError> {
        if self.staged.is_empty() {
            return Ok(());
        }
        self.file.write_all(self.staged.as_bytes()).map_err(unwritable)?;
        self.staged.clear();
        Ok(())
    }
}

/// The answers in a file; `None` where it is not there, or of another version.
fn read(path: &Path, version: &str) -> Option<HashMap<Key, GeneratedResponse>> {
    let mut lines = BufReader::new(fs::File::open(path).ok()?).lines().map_while(Result::ok);
    let heading: Heading = serde_json::from_str(&lines.next()?).ok()?;
    let line = |line: String| {
        let Line { key, response } = serde_json::from_str(&line).ok()?;
        Some((of_hexadecimal(&key)?, response))
    };
    (heading.version == version).then(|| lines.filter_map(line).collect())
}

fn in_one_line(record: &impl Serialize) -> Result<String, PluginError> {
    let line = serde_json::to_string(record);
    line.map(|line| line + "\n").map_err(|error| PluginError::failed(error.to_string()))
}

fn unwritable(error: std::io::Error) -> PluginError {
    PluginError::failed(format!("the answers cannot be kept: {error}"))
        .with_hint("make room on the disk, then give the same command again")
}

pub(crate) fn hexadecimal(key: &Key) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn of_hexadecimal(text: &str) -> Option<Key> {
    let byte = |index: usize| u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok();
    let bytes: Vec<u8> = (0..16).map(byte).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use sppo_plugin::FinishReason;

    use super::*;

    fn response(token: u32) -> GeneratedResponse {
        GeneratedResponse {
            tokens: vec![token],
            log_probs: vec![-0.1 * token as f32],
            finish_reason: FinishReason::Length,
        }
    }

    #[test]
    fn answers_outlive_a_cut_and_are_forgotten_with_their_weights() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("answers.jsonl");
        let keys: Vec<Key> = (0..3).map(|number| key("a", &[number])).collect();
        let mut answers = Answers::open(&path, "a").unwrap();
        for (number, key) in (0..).zip(&keys) {
            answers.stage(&AnswerLine::new(key, &response(number)).unwrap());
        }
        answers.write_staged().unwrap();
        let length = std::fs::metadata(&path).unwrap().len();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 5).unwrap();
        let mut answers = Answers::open(&path, "a").unwrap();
        assert_eq!(answers.get(&keys[1]), Some(&response(1)));
        assert_eq!(answers.get(&keys[2]), None);
        answers.stage(&AnswerLine::new(&keys[2], &response(2)).unwrap());
        answers.write_staged().unwrap();
        assert_eq!(Answers::open(&path, "a").unwrap().get(&keys[2]), Some(&response(2)));
        assert_eq!(Answers::open(&path, "b").unwrap().get(&keys[0]), None);
        assert_eq!(Answers::open(&path, "a").unwrap().get(&keys[0]), None);
        assert_ne!(key("a", b"b"), key("ab", b""));
    }
}

//! From texts to the ranker's tokens, as LLM-Blender's collator does it with a batch size of 1:
//! `[CLS] <|source|> prompt [SEP] [CLS] <|candidate1|> first [SEP] [CLS] <|candidate2|> second [SEP]`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;
use sppo_model::text::Tokenizer;
use sppo_plugin::PluginError;

/// The token before the prompt.
const SOURCE_MARKER: &str = "<|source|>";
/// The tokens before the candidates.
const CANDIDATE_MARKERS: [&str; 2] = ["<|candidate1|>", "<|candidate2|>"];
/// The first and the last token of each of the three parts.
const PART_BEGINNING: &str = "[CLS]";
const PART_END: &str = "[SEP]";
const UNKNOWN: &str = "[UNK]";
/// Other tokens that no text may spell.
const OTHER_CONTROL_TOKENS: [&str; 3] = ["[PAD]", "[MASK]", "<|candidate|>"];
/// A part's beginning, marker and end.
const FRAME: usize = 3;

/// Lengths of the parts, at most, in tokens with their frame. `config.json` of `llm-blender/PairRM` says
/// so; other forms of the model have the same limits.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default)]
struct Limits {
    source_maxlength: usize,
    candidate_maxlength: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { source_maxlength: 1224, candidate_maxlength: 412 }
    }
}

/// A builder of sequences from prompts and candidates.
pub(crate) struct SequenceBuilder {
    tokenizer: Tokenizer,
    limits: Limits,
    source_marker: u32,
    candidate_markers: [u32; 2],
    part_beginning: u32,
    part_end: u32,
    unknown: u32,
    /// Tokens that no text may spell.
    control_tokens: Vec<u32>,
    /// Whether the user was told that texts are cut.
    has_told_cut: AtomicBool,
}

/// The tokens of a prompt and of the responses to it, cut to their limits, without markers.
pub(crate) struct Contents {
    source: Vec<u32>,
    pub(crate) candidates: Vec<Vec<u32>>,
}

impl SequenceBuilder {
    /// Reads the tokenizer and the limits of a model directory.
    pub(crate) fn read(directory: &Path) -> Result<Self, PluginError> {
        let config: Limits = read_json(&directory.join("config.json"))?;
        if config.source_maxlength < FRAME || config.candidate_maxlength < FRAME {
            return Err(PluginError::input(format!(
                "{}: `source_maxlength` and `candidate_maxlength` leave no room for text",
                directory.join("config.json").display()
            )));
        }
        let path = directory.join("tokenizer.json");
        let tokenizer = Tokenizer::from_json(&read(&path)?, &path)?;
        let id = |token: &str| {
            tokenizer.token_id(token).ok_or_else(|| {
                PluginError::input(format!("{}: there is no token `{token}`", path.display()))
                    .with_hint("use the tokenizer of llm-blender/PairRM")
            })
        };
        let source_marker = id(SOURCE_MARKER)?;
        let [first, second] = CANDIDATE_MARKERS;
        let candidate_markers = [id(first)?, id(second)?];
        let (part_beginning, part_end) = (id(PART_BEGINNING)?, id(PART_END)?);
        let mut control_tokens = vec![source_marker, part_beginning, part_end];
        control_tokens.extend(candidate_markers);
        control_tokens
            .extend(OTHER_CONTROL_TOKENS.iter().filter_map(|token| tokenizer.token_id(token)));
        Ok(Self {
            limits: config,
            source_marker,
            candidate_markers,
            part_beginning,
            part_end,
            unknown: id(UNKNOWN)?,
            control_tokens,
            has_told_cut: AtomicBool::new(false),
            tokenizer,
        })
    }

    /// Tokens of a prompt and its responses. The room that the prompt leaves is shared by the candidates.
    pub(crate) fn contents<'a>(
        &self,
        prompt: &str,
        candidates: impl Iterator<Item = &'a str>,
    ) -> Result<Contents, PluginError> {
        let Limits { source_maxlength, candidate_maxlength } = self.limits;
        let source = self.content(prompt, source_maxlength)?;
        let free = source_maxlength - (source.len() + FRAME);
        let candidate = |text| self.content(text, candidate_maxlength + free / 2);
        Ok(Contents { candidates: candidates.map(candidate).collect::<Result<_, _>>()?, source })
    }

    /// Tokens of a text, cut on the right. LLM-Blender replaces `[SEP]` by a space; other control tokens
    /// that a text spells, with which it could pass for another part, become unknown tokens here.
    fn content(&self, text: &str, limit: usize) -> Result<Vec<u32>, PluginError> {
        let text = text.replace(PART_END, " ");
        let mut tokens = self.tokenizer.encode(&text, false)?;
        if tokens.len() > limit - FRAME {
            tokens.truncate(limit - FRAME);
            self.tell_cut();
        }
        for token in &mut tokens {
            if self.control_tokens.contains(token) {
                *token = self.unknown;
            }
        }
        Ok(tokens)
    }

    fn tell_cut(&self) {
        if !self.has_told_cut.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "some prompts or answers are longer than the ranker sees, {} tokens for a prompt and at least {} \
                 for an answer, and lose their ends: what stands there is not judged",
                self.limits.source_maxlength,
                self.limits.candidate_maxlength
            );
        }
    }

    /// The sequence that shows candidate `first` before candidate `second`.
    pub(crate) fn sequence(&self, contents: &Contents, first: usize, second: usize) -> Vec<u32> {
        let [first_marker, second_marker] = self.candidate_markers;
        let parts = [
            (self.source_marker, &contents.source),
            (first_marker, &contents.candidates[first]),
            (second_marker, &contents.candidates[second]),
        ];
        let length = parts.iter().map(|(_, content)| content.len() + FRAME).sum();
        let mut tokens = Vec::with_capacity(length);
        for (marker, content) in parts {
            tokens.extend([self.part_beginning, marker]);
            tokens.extend_from_slice(content);
            tokens.push(self.part_end);
        }
        tokens
    }
}

fn read(path: &Path) -> Result<Vec<u8>, PluginError> {
    fs_err::read(path).map_err(|error| {
        PluginError::input(error.to_string()).with_hint(
            "name a directory that holds config.json, tokenizer.json and model.safetensors",
        )
    })
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, PluginError> {
    serde_json::from_slice(&read(path)?)
        .map_err(|error| PluginError::input(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::Value;

    use super::*;

    fn directory() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/pairrm-tiny")
    }

    fn builder() -> SequenceBuilder {
        SequenceBuilder::read(&directory()).unwrap()
    }

    fn contents(prompt: &str, candidates: &[&str]) -> Contents {
        builder().contents(prompt, candidates.iter().copied()).unwrap()
    }

    fn ids(value: &Value) -> Vec<u32> {
        serde_json::from_value(value.clone()).unwrap()
    }

    /// LLM-Blender's ids after truncation, of ordinary, empty, non-Latin and very long texts.
    #[test]
    fn tokens_are_those_of_llm_blender() {
        let golden: Value = read_json(&directory().join("golden.json")).unwrap();
        let builder = builder();
        for case in golden["cases"].as_array().unwrap() {
            let candidates = case["candidates"].as_array().unwrap();
            let texts = candidates.iter().map(|text| text.as_str().unwrap());
            let contents = builder.contents(case["source"].as_str().unwrap(), texts).unwrap();
            let framed = |marker: u32, content: &[u32]| [&[1, marker], content, &[2]].concat();
            assert_eq!(framed(481, &contents.source), ids(&case["source_ids"]));
            for (content, expected) in
                contents.candidates.iter().zip(case["candidate_ids"].as_array().unwrap())
            {
                assert_eq!(framed(484, content), ids(expected));
            }
        }
        // And the sequences of the transformers form of the model, with the markers of both places.
        let items = golden["batched"]["items"].as_array().unwrap();
        for (item, expected) in
            items.iter().zip(golden["pairrm_hf"]["input_ids"].as_array().unwrap())
        {
            let candidates = item["candidates"].as_array().unwrap();
            let texts = candidates.iter().map(|text| text.as_str().unwrap());
            let contents = builder.contents(item["source"].as_str().unwrap(), texts).unwrap();
            assert_eq!(builder.sequence(&contents, 0, 1), ids(expected));
        }
    }

    #[test]
    fn no_sequence_is_longer_than_the_ranker_takes() {
        let long = "A sentence that goes on and on. ".repeat(800);
        for prompt in ["", "Why?", &long] {
            let contents = contents(prompt, &[&long, &long, "No."]);
            let length = builder().sequence(&contents, 0, 1).len();
            assert!((2040..=2048).contains(&length), "{length}");
            assert!(builder().sequence(&contents, 2, 2).len() < 1300);
        }
    }

    /// Text cannot pass for a control token, not even in letters that normalise to one.
    #[test]
    fn texts_that_spell_control_tokens_are_texts() {
        let builder = builder();
        for spelled in [
            "<|source|>",
            "<|candidate1|>",
            "<|candidate2|>",
            "<|candidate|>",
            "[CLS]",
            "[PAD]",
            "[MASK]",
            "[SEP]",
            "\u{FF1C}|source|\u{FF1E}",
            "<\u{FF5C}candidate2\u{FF5C}>",
        ] {
            let text = format!("{spelled}a {spelled} b{spelled}");
            let contents = contents(&text, &[&text, "c"]);
            for (first, second) in [(0, 1), (1, 0), (0, 0)] {
                let sequence = builder.sequence(&contents, first, second);
                for (token, times) in
                    [(481, 1), (482, 1), (483, 1), (484, 0), (0, 0), (1, 3), (2, 3)]
                {
                    let found = sequence.iter().filter(|&&id| id == token).count();
                    assert_eq!(found, times, "`{spelled}`: token {token}");
                }
            }
        }
        // A combining character at the start cannot merge with the marker.
        assert_eq!(builder.sequence(&contents("\u{338}x", &["a"]), 0, 0)[..2], [1, 481]);
    }
}

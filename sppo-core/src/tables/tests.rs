use std::fs;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::error::ErrorCategory;
use crate::plugin::{FinishReason, Message};
use crate::records::{Prompt, Response, Rollout};

#[derive(Debug, Serialize, Deserialize)]
struct Row {
    prompt: String,
    tokens: Vec<u32>,
}

fn refusal(name: &str, content: &[u8]) -> Error {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    read::<Row>(&path).unwrap_err()
}

#[test]
fn malformed_lines_are_named() {
    let good = r#"{"prompt": "a", "tokens": [1]}"#;
    for (second, reason) in [
        (r#"{"prompt": "a""#, "not a JSON object: EOF while parsing an object (character "),
        (r#"{"prompt": "a"}"#, "missing column `tokens`"),
        (r#"{"prompt": "a", "tokens": [1, -2]}"#, "`tokens[1]`: invalid value: integer `-2`"),
        (r#"{"prompt": "a", "tokens": []} x"#, "trailing characters"),
        (r#"[1, 2]"#, ""),
    ] {
        let error = refusal("x.jsonl", format!("{good}\n\n{second}\n").as_bytes()).to_string();
        assert!(error.contains(".jsonl:3: ") && error.contains(reason), "{error}");
    }
    let error = refusal("x.jsonl", b"\xef\xbb\xbf{\"prompt\": \"\xff\"}").to_string();
    assert!(error.contains(".jsonl:1: not UTF-8 text (byte 13"), "{error}");
}

#[test]
fn unusable_files_are_named() {
    assert!(refusal("x.csv", b"").hint().unwrap().contains(".jsonl"));
    let error = refusal("x.parquet", b"PAR1 not really");
    assert!(error.to_string().contains("cannot read this Parquet file"), "{error}");
    let error = read::<Row>(Path::new("/nowhere/x.jsonl")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/nowhere/x.jsonl: cannot read this file: there is no such file or directory"
    );
}

#[test]
fn a_column_that_parquet_lacks_is_named() {
    #[derive(Serialize, Deserialize)]
    struct Other {
        prompt: String,
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.parquet");
    write(&path, &[Other { prompt: "a".into() }]).unwrap();
    let error = read::<Row>(&path).unwrap_err().to_string();
    assert!(error.contains("row 1: ") && error.contains("missing column `tokens`"), "{error}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let row = [Row { prompt: "a".into(), tokens: vec![1] }];
    for name in ["x.jsonl", "x.parquet"] {
        let path = directory.path().join(name);
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let error = write(&path, &row).unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Input);
        assert!(error.to_string().ends_with("cannot write this file: the disk is full"), "{error}");
    }
}

fn rollouts() -> impl Strategy<Value = Vec<Rollout>> {
    let response =
        (".*", prop::collection::vec((any::<u32>(), -50.0f32..0.0), 0..4), any::<bool>()).prop_map(
            |(text, tokens, ended)| Response {
                text,
                tokens: tokens.iter().map(|(token, _)| *token).collect(),
                log_probs: tokens.iter().map(|(_, log_prob)| *log_prob).collect(),
                finish_reason: if ended { FinishReason::Stop } else { FinishReason::Length },
            },
        );
    let rollout = (any::<u64>(), ".*", prop::collection::vec(response, 0..3)).prop_map(
        |(id, text, responses)| Rollout {
            prompt: Prompt { id, messages: vec![Message::user(text.clone())] },
            rendered_prompt: text,
            prompt_tokens: vec![1, 2],
            responses,
        },
    );
    prop::collection::vec(rollout, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn rows_come_back_as_they_were(rows in rollouts()) {
        let directory = tempfile::tempdir().unwrap();
        for name in ["x.jsonl", "x.parquet"] {
            let path = directory.path().join(name);
            write(&path, &rows).unwrap();
            prop_assert_eq!(&read::<Rollout>(&path).unwrap(), &rows);
        }
    }
}

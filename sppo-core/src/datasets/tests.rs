use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::objective::Objective;
use crate::plugin::order::OrderMatrix;
use crate::plugin::{Conversation, FinishReason, Message};
use crate::preference::PreferenceMatrix;
use crate::records::{Judgment, Prompt, Response, Rollout, TrainingExample, TrainingResponse};
use crate::stages::JudgedComparison;
use crate::tables;
use crate::win_rate::{Preferences, VerdictKind};

/// Writes the rows as JSON lines and, column for column, as Parquet; `check` sees both files.
fn in_both_formats(rows: &[Value], check: impl Fn(&Path)) {
    let directory = tempfile::tempdir().unwrap();
    let rows: Vec<_> = rows.iter().map(|row| row.as_object().unwrap().clone()).collect();
    for name in ["rows.jsonl", "rows.parquet"] {
        let path = directory.path().join(name);
        tables::write_samples(&path, &rows).unwrap();
        check(&path);
    }
}

fn refusal<T: std::fmt::Debug>(
    row: Value,
    read: impl Fn(&Path) -> crate::Result<Vec<T>>,
) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rows.jsonl");
    fs::write(&path, format!("{row}\n")).unwrap();
    let error = read(&path).unwrap_err().to_string();
    error.split_once("rows.jsonl").unwrap().1.to_owned()
}

fn user(text: &str) -> Conversation {
    vec![Message::user(text.to_owned())]
}

#[test]
fn prompts_are_text_or_messages() {
    let unknown_columns = json!({"prompt": "Hi", "source": {"name": "x"}, "score": 0.5});
    in_both_formats(&[unknown_columns.clone(), unknown_columns], |path| {
        let prompts = read_prompts(path).unwrap();
        let expected = |id| Prompt { id, messages: user("Hi") };
        assert_eq!(prompts, [expected(0), expected(1)]);
        write_prompts(path, &prompts).unwrap();
        assert_eq!(read_prompts(path).unwrap(), prompts);
    });
    let messages =
        json!([{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]);
    in_both_formats(&[json!({"messages": messages})], |path| {
        assert_eq!(read_prompts(path).unwrap()[0].messages[1], Message::user("Hi"));
    });
}

#[test]
fn unusable_prompts_are_refused_with_their_line() {
    for (row, reason) in [
        (json!({"question": "Hi"}), ":1: missing column `prompt` or `messages`"),
        (json!({"prompt": " "}), ":1: the prompt is empty"),
        (json!({"prompt": 3}), ":1: `prompt`: expected text or a list of messages"),
        (json!({"messages": []}), ":1: the list of messages is empty"),
        (json!({"messages": [{"role": "user"}]}), ":1: `messages[0]`: missing field `content`"),
        (json!({"messages": [{"role": "assistant", "content": "x"}]}), ":1: the conversation ends"),
    ] {
        let message = refusal(row, read_prompts);
        assert!(message.starts_with(reason), "{message}");
    }
    let error = parse_prompts("bundled", "\n").unwrap_err();
    assert_eq!(error.to_string(), "bundled: the file holds no rows");
}

#[test]
fn parquet_with_other_columns_is_not_taken_for_empty() {
    in_both_formats(&[json!({"instruction": "Hi", "output": "Ho"})], |path| {
        let error = read_prompts(path).unwrap_err().to_string();
        let said = match path.extension().and_then(std::ffi::OsStr::to_str) {
            Some("parquet") => "it has `instruction`, `output`",
            _ => "missing column `prompt` or `messages`",
        };
        assert!(error.contains(said), "{error}");
    });
}

#[test]
fn ranked_candidates_keep_the_columns_that_they_came_with() {
    let row =
        json!({"id": 7, "prompt": "Hi", "candidates": ["a", "b"], "tags": ["x"], "note": null});
    in_both_formats(std::slice::from_ref(&row), |path| {
        let sets = read_candidates(path).unwrap();
        assert_eq!(
            (&sets[0].messages, sets[0].candidates.as_slice()),
            (&user("Hi"), ["a".into(), "b".into()].as_slice())
        );
        let ranked: Vec<RankedCandidates> = sets
            .into_iter()
            .map(|set| RankedCandidates {
                set,
                judged: JudgedComparison::from(Preferences {
                    matrix: PreferenceMatrix::new(2, vec![0.5, 0.75, 0.25, 0.5]).unwrap(),
                    scores: vec![1.0, 0.0],
                    orders: None,
                    kind: VerdictKind::Scores,
                }),
            })
            .collect();
        for name in ["out.jsonl", "out.parquet"] {
            let out = path.with_file_name(name);
            write_ranked(&out, &ranked, "rules 1.0").unwrap();
            let mut expected = row.clone();
            expected["probability"] = json!([[0.5, 0.75], [0.25, 0.5]]);
            expected["rm_scores"] = json!([1.0, 0.0]);
            expected["oracle"] = json!("rules 1.0");
            assert_eq!(tables::read::<Value>(&out).unwrap(), [expected]);
        }
    });
    let message = refusal(json!({"prompt": "Hi", "candidates": ["a"]}), read_candidates);
    assert!(message.starts_with(":1: `candidates` holds 1 of them"), "{message}");
    let message = refusal(json!({"prompt": "Hi", "candidates": ["a", 3]}), read_candidates);
    assert!(message.starts_with(":1: `candidates[1]`: invalid type"), "{message}");
    let message = refusal(json!({"prompt": "Hi"}), read_candidates);
    assert!(message.starts_with(":1: missing column `candidates`"), "{message}");
}

#[test]
fn pairs_are_text_conversations_or_tokens() {
    let probabilities = (Some(0.75), Some(0.625), Some(0.375));
    let with = |mut row: Value| {
        row["chosen_probs"] = json!(0.75);
        row["chosen_probs_win"] = json!(0.625);
        row["chosen_probs_lose"] = json!(0.375);
        row
    };
    let check = |row: Value, expected: PairContent| {
        in_both_formats(&[with(row)], |path| {
            for objective in [Objective::Sppo, Objective::SppoSingle] {
                let [pair] = &read_pairs(path, objective).unwrap()[..] else { panic!() };
                let found = (pair.chosen_probability, pair.chosen_win_rate, pair.rejected_win_rate);
                assert_eq!((&pair.content, found), (&expected, probabilities));
            }
        });
    };
    let text =
        || PairContent::Text { messages: user("Hi"), chosen: "a".into(), rejected: "b".into() };
    check(json!({"prompt": "Hi", "chosen": "a", "rejected": "b"}), text());
    let says = |text: &str| json!([{"content": "Hi", "role": "user"}, {"content": text, "role": "assistant"}]);
    check(json!({"chosen": says("a"), "rejected": says("b")}), text());
    let tokens = json!({"prompt_tokens": [1, 2], "chosen_tokens": [3], "rejected_tokens": [4]});
    let expected = PairContent::Tokens {
        prompt: vec![1, 2],
        chosen: vec![3],
        rejected: vec![4],
        chosen_prompt: None,
        rejected_prompt: None,
    };
    check(tokens, expected);
}

#[test]
fn unusable_pairs_are_refused_with_their_line() {
    for (row, reason) in [
        (json!({"prompt": "Hi", "chosen": "a"}), ":1: missing column `rejected`"),
        (
            json!({"prompt_tokens": [1], "chosen_tokens": [2]}),
            ":1: missing column `rejected_tokens`",
        ),
        (
            json!({"prompt_tokens": [1], "chosen_tokens": [2], "rejected_tokens": []}),
            ":1: the prompt and both",
        ),
        (
            json!({"prompt": "Hi", "chosen": "a", "rejected": "b", "chosen_probs_win": 1.5}),
            ":1: `chosen_probs_win` is 1.5",
        ),
        (
            json!({"chosen": [{"role": "user", "content": "x"}], "rejected": "b"}),
            ":1: `chosen` does not end",
        ),
    ] {
        let message = refusal(row, |path| read_pairs(path, Objective::Dpo));
        assert!(message.starts_with(reason), "{message}");
    }
    for (objective, column) in [
        (Objective::Sppo, "chosen_probs_win"),
        (Objective::SppoAll, "chosen_probs_win"),
        (Objective::SppoSingle, "chosen_probs"),
    ] {
        let row = json!({"prompt": "Hi", "chosen": "a", "rejected": "b"});
        let message = refusal(row, |path| read_pairs(path, objective));
        assert!(message.starts_with(&format!(":1: missing column `{column}`")), "{message}");
        assert!(message.contains(&format!("`{objective}`")), "{message}");
    }
}

#[test]
fn score_requests_are_text_or_tokens() {
    in_both_formats(&[json!({"prompt": "Hi", "response": "a"})], |path| {
        let content = ScoreContent::Text { messages: user("Hi"), response: "a".into() };
        assert_eq!(read_score_requests(path).unwrap(), [ScoreRequest { content, row: 0 }]);
    });
    in_both_formats(&[json!({"prompt_tokens": [1], "response_tokens": [2, 3]})], |path| {
        let content = ScoreContent::Tokens { prompt: vec![1], response: vec![2, 3] };
        assert_eq!(read_score_requests(path).unwrap(), [ScoreRequest { content, row: 0 }]);
    });
    let message = refusal(json!({"prompt_tokens": [1]}), read_score_requests);
    assert!(message.starts_with(":1: missing column `response_tokens`"), "{message}");
}

#[test]
fn generated_answers_have_the_official_columns() {
    let response = |text: &str| Response {
        text: text.into(),
        tokens: vec![1],
        log_probs: vec![-0.5],
        finish_reason: FinishReason::Stop,
    };
    let rollouts = [Rollout {
        prompt: Prompt { id: 0, messages: user("Hi") },
        rendered_prompt: "<Hi>".into(),
        prompt_tokens: vec![1],
        responses: vec![response("a"), response("b")],
    }];
    let matrix = PreferenceMatrix::new(2, vec![0.5, 1.0, 0.0, 0.5]).unwrap();
    let judgments = [judgment(0, matrix, vec![2.0, -2.0])];
    let says = |text: &str| json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]);
    let expected = json!({
        "prompt": "Hi", "generate_0": says("a"), "generate_1": says("b"),
        "probability": [[0.5, 1.0], [0.0, 0.5]], "rm_scores": [2.0, -2.0],
    });
    let directory = tempfile::tempdir().unwrap();
    for name in ["train.parquet", "train.jsonl"] {
        let path = directory.path().join(name);
        write_generated(&path, &rollouts, &judgments).unwrap();
        let rows = tables::read::<Value>(&path).unwrap();
        assert_eq!(rows, std::slice::from_ref(&expected));
        let columns: Vec<&String> = rows[0].as_object().unwrap().keys().collect();
        assert_eq!(columns, ["prompt", "generate_0", "generate_1", "probability", "rm_scores"]);
    }
}

fn judgment(prompt_id: u64, matrix: PreferenceMatrix, scores: Vec<f64>) -> Judgment {
    let (read_first, asked_pairs, oracle_matrix) = (None, None, None);
    Judgment { prompt_id, matrix, scores, read_first, asked_pairs, oracle_matrix }
}

fn training_response() -> impl Strategy<Value = TrainingResponse> {
    let prompt = prop::option::of(prop::collection::vec(any::<u32>(), 1..3));
    let tokens = prop::collection::vec(any::<u32>(), 1..4);
    (".*", tokens, prompt, 0.0f64..=1.0, prop::option::of(-1e4f64..0.0)).prop_map(
        |(text, tokens, prompt_tokens_override, win_rate, reference_log_prob)| TrainingResponse {
            text,
            tokens,
            prompt_tokens_override,
            win_rate,
            reference_log_prob,
            ..TrainingResponse::default()
        },
    )
}

/// Examples with all that is optional.
fn with_targets(mut examples: Vec<TrainingExample>) -> Vec<TrainingExample> {
    for example in &mut examples {
        example.values_of_all = Some(vec![0.25, 0.5, 0.75]);
        for (index, response) in example.responses.iter_mut().enumerate() {
            response.score = Some(-1.5);
            response.starting_log_prob = Some(-12.5);
            response.earlier_log_probs = Some(vec![-3.25; index]);
        }
    }
    examples
}

fn training_set(answers: std::ops::Range<usize>) -> impl Strategy<Value = Vec<TrainingExample>> {
    let responses = prop::collection::vec(training_response(), answers);
    let example = (any::<u64>(), ".*", responses, 0.0f64..=1.0).prop_map(
        |(prompt_id, text, responses, probability)| TrainingExample {
            prompt_id,
            messages: user(&text),
            prompt_tokens: vec![1, 2],
            chosen_probability: (responses.len() == 2).then_some(probability),
            responses,
            values_of_all: None,
        },
    );
    prop::collection::vec(example, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn training_sets_come_back_as_they_were(pairs in training_set(2..3), any in training_set(2..5)) {
        let directory = tempfile::tempdir().unwrap();
        for name in ["set.parquet", "set.jsonl"] {
            let path = directory.path().join(name);
            let [full_pairs, full] = [&pairs, &any].map(|examples| with_targets(examples.clone()));
            for examples in [&pairs, &any, &full_pairs, &full] {
                TrainingExample::write(&path, examples).unwrap();
                prop_assert_eq!(&TrainingExample::read(&path).unwrap(), examples);
            }
        }
    }

    #[test]
    fn judgments_come_back_as_they_were(scores in prop::collection::vec(-1e3f64..1e3, 2..5)) {
        let matrix = PreferenceMatrix::from_scores(&scores, 1.0).unwrap();
        let plain = judgment(u64::MAX, matrix, scores);
        let size = plain.matrix.size();
        let read_first = OrderMatrix::new(size, (0..size * size).map(|entry| (entry % 3 > 0).then_some(0.25)).collect());
        let full = Judgment {
            read_first: Some(read_first.unwrap()),
            asked_pairs: Some(vec![(0, 1)]),
            oracle_matrix: Some(plain.matrix.clone()),
            ..plain.clone()
        };

        let directory = tempfile::tempdir().unwrap();
        for name in ["judgments.parquet", "judgments.jsonl"] {
            let path = directory.path().join(name);
            for judgments in [vec![plain.clone()], vec![plain.clone(), full.clone()]] {
                Judgment::write(&path, &judgments).unwrap();
                prop_assert_eq!(Judgment::read(&path).unwrap(), judgments);
            }
        }
    }
}

#[test]
fn roles_of_other_formats_are_mapped_or_refused_with_their_line() {
    let known = [
        ("human", "user"),
        ("User", "user"),
        ("prompter", "user"),
        ("gpt", "assistant"),
        ("Assistant", "assistant"),
        ("bot", "assistant"),
        ("model", "assistant"),
        ("SYSTEM", "system"),
        ("function", "tool"),
        ("observation", "tool"),
        ("developer", "developer"),
    ];
    for (written, role) in known {
        let row = json!({"messages": [
            {"role": written, "content": "x"}, {"role": "human", "content": "Hi"},
        ]});
        let prompts = parse_prompts("rows.jsonl", &row.to_string()).unwrap();
        assert_eq!(prompts[0].messages[0].role, role, "{written}");
        assert_eq!(prompts[0].messages[1].role, "user");
    }
    let turns = |roles: &[&str]| -> Value {
        roles.iter().map(|role| json!({"role": role, "content": "x"})).collect()
    };
    let cases = [
        (["user", "gpt"], "ends with the assistant's message"),
        (["user", "bot"], "ends with the assistant's message"),
        (["user", "system"], "ends with a `system` message"),
        (["user", "Developer"], "ends with a `developer` message"),
        (["narrator", "user"], "`narrator` is not a role"),
        (["", "user"], "`` is not a role"),
    ];
    for (roles, expected) in cases {
        let messages = turns(&roles);
        let entries = [
            refusal(json!({"messages": messages}), read_prompts),
            refusal(json!({"prompt": messages, "candidates": ["a", "b"]}), read_candidates),
            refusal(json!({"messages": messages, "response": "a"}), read_score_requests),
            refusal(
                json!({"messages": messages, "chosen": "a", "rejected": "b"}),
                |path: &Path| read_pairs(path, Objective::Dpo),
            ),
        ];
        for refused in entries {
            assert!(refused.starts_with(":1: ") && refused.contains(expected), "{refused}");
        }
    }
    let chat = json!([{"role": "human", "content": "Hi"}, {"role": "gpt", "content": "Hello"}]);
    let pair = json!({"chosen": chat, "rejected": chat});
    let text = pair.to_string();
    let pairs = parse_pairs("rows.jsonl", &text, Objective::Dpo).unwrap();
    let PairContent::Text { messages, chosen, .. } = &pairs[0].content else { panic!() };
    assert_eq!((messages, chosen.as_str()), (&user("Hi"), "Hello"));
}

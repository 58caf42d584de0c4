//! Tests of rows as other people's files have them: each member of a kind is read as what it says, or refused
//! by its name. Nothing is changed on the way.

use std::fs;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::objective::Objective;
use crate::plugin::{Conversation, Message};
use crate::preference::PreferenceMatrix;
use crate::win_rate::{Preferences, VerdictKind};

/// A file in a directory of its own.
fn file(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    (directory, path)
}

pub(super) fn message(role: &'static str, content: &'static str) -> Message<'static> {
    Message { role: role.into(), content: content.into() }
}

/// What an error says, with its advice.
pub(super) fn words(error: &crate::Error) -> String {
    format!("{error}\nhint: {}", error.hint().unwrap_or_default())
}

/// Ranks the one row of a file into another, and returns what was written.
fn ranked(row: &str, output: &str) -> crate::Result<Vec<u8>> {
    let (directory, path) = file("in.jsonl", row);
    let sets = read_candidates(&path)?;
    let preferences = Preferences {
        matrix: PreferenceMatrix::new(2, vec![0.5, 0.75, 0.25, 0.5]).unwrap(),
        scores: vec![0.75, 0.25],
        orders: None,
        kind: VerdictKind::Probabilities,
    };
    let ranked: Vec<RankedCandidates> = sets
        .into_iter()
        .map(|set| RankedCandidates { set, judged: preferences.clone().into() })
        .collect();
    let output = directory.path().join(output);
    write_ranked(&output, &ranked, "rules 1.0")?;
    Ok(fs::read(output).unwrap())
}

const RANKED: &str = ",\"probability\":[[0.5,0.75],[0.25,0.5]],\"oracle\":\"rules 1.0\"}\n";

#[test]
fn values_that_pass_through_do_not_change() {
    for value in [
        "18446744073709551616",
        "-9223372036854775809",
        "340282366920938463463374607431768211455",
        "0.1000000000000000055511151231257827",
        "1e400",
        "-0.0",
        "1.0",
        "1E5",
        "[1, 18446744073709551616, {\"deep\": 1e-400}]",
        "\"\\u00e9\\ud83d\\ude00 \\/\"",
        "{\"b\": 1, \"a\": 2, \"b\": 3}",
        "null",
    ] {
        let row = format!("{{\"id\":{value},\"prompt\":\"Hi\",\"candidates\":[\"a\", \"b\"]");
        let written = String::from_utf8(ranked(&format!("{row}}}"), "out.jsonl").unwrap()).unwrap();
        assert_eq!(written, format!("{row}{RANKED}"));
    }
    // What an earlier judge said does not stay beside what this one says.
    let earlier =
        r#"{"probability":[[0.5]],"prompt":"Hi","candidates":["a","b"],"rm_scores":[1,2]}"#;
    let written = String::from_utf8(ranked(earlier, "out.jsonl").unwrap()).unwrap();
    assert!(
        written.starts_with("{\"probability\":[[0.5,0.75],[0.25,0.5]],\"prompt\""),
        "{written}"
    );
    assert!(!written.contains("rm_scores"), "{written}");
}

#[test]
fn numbers_that_parquet_would_change_are_refused() {
    let row = |value: &str| {
        format!("{{\"id\":{value},\"prompt\":\"Hi\",\"candidates\":[\"a\",\"b\"]}}\n")
    };
    for value in [
        "18446744073709551616",
        "-9223372036854775809",
        "1e400",
        "1e-400",
        "[{\"x\":1e999}]",
        "0.1000000000000000055",
    ] {
        let error = words(&ranked(&row(value), "out.parquet").unwrap_err());
        assert!(error.contains("row 1: `id` holds ") && error.contains(".jsonl"), "{error}");
    }
    for (one, other) in [("9007199254740993", "0.5"), ("18446744073709551615", "-1")] {
        let error = words(&ranked(&(row(one) + &row(other)), "out.parquet").unwrap_err());
        assert!(error.contains(&format!("`id` holds {one} and ")), "{error}");
    }
    for value in [
        "18446744073709551615",
        "-9223372036854775808",
        "0.1",
        "0.30000000000000004",
        "1.50000000000000000000",
        "9007199254740993",
        "0e5",
        "\"1e400\"",
    ] {
        ranked(&row(value), "out.parquet").unwrap();
    }
}

/// Reads the prompts of a row from JSON lines.
fn conversation(row: &Value, names: &ColumnNames) -> crate::Result<Conversation> {
    let (_directory, path) = file("rows.jsonl", format!("{row}\n"));
    Ok(read_prompts_named(&path, names)?.remove(0).messages)
}

#[test]
fn prompts_are_found_in_the_forms_that_data_sets_have() {
    let hi = || vec![message("user", "Hi")];
    let says = |text: &str| json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]);
    for (row, expected) in [
        (json!({"prompt": [{"role": "user", "content": "Hi"}]}), hi()),
        (json!({"prompt": {"role": "user", "content": "Hi"}}), hi()),
        (json!({"messages": {"role": ["user"], "content": ["Hi"]}}), hi()),
        (
            json!({"prompt": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]}),
            hi(),
        ),
        (json!({"prompt": [{"role": "user", "content": ["Hi"]}]}), hi()),
        (
            json!({"prompt": [{"role": "user", "content": "Hi", "tool_calls": null, "name": null}]}),
            hi(),
        ),
        (json!({"id": "x", "conversations": [{"from": "human", "value": "Hi"}]}), hi()),
        (json!({"conversation": [{"from": "human", "value": "Hi"}]}), hi()),
        (
            json!({"system": "Be brief", "conversations": [{"from": "human", "value": "Hi"}]}),
            vec![message("system", "Be brief"), message("user", "Hi")],
        ),
        (
            json!({"conversations": [
                {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "user", "value": "c"},
            ]}),
            vec![message("user", "a"), message("assistant", "b"), message("user", "c")],
        ),
        (json!({"chosen": says("a"), "rejected": says("b")}), hi()),
        (
            json!({"prompt": "Hi", "messages": says("a"), "chosen": says("a"), "rejected": says("b")}),
            hi(),
        ),
        (json!({"prompt": "Hi", "messages": []}), hi()),
        (json!({"prompt": "Hi", "conversation": "c-1", "system": "gpt-4"}), hi()),
    ] {
        assert_eq!(conversation(&row, &ColumnNames::default()).unwrap(), expected, "{row}");
    }
}

#[test]
fn forms_that_can_be_read_in_two_ways_are_named_with_the_remedy() {
    for (row, told) in [
        (json!({"question": "Hi"}), ["it has `question`", "prompts.columns.prompt=question"]),
        (
            json!({"instruction": "Hi", "output": "Ho"}),
            ["it has `instruction`, `output`", "prompts.columns.prompt=instruction"],
        ),
        (
            json!({"instruction": "Add", "input": "1, 2", "output": "3"}),
            ["`input`", "prompts.columns.prompt=[\"instruction\",\"input\"]"],
        ),
        (json!({"text": "Hi"}), ["it has `text`", "prompts.columns.prompt=text"]),
        (json!({"Prompt": "Hi"}), ["it has `Prompt`", "prompts.columns.prompt=Prompt"]),
        (
            json!({"system": "Be brief", "question": "Hi"}),
            ["prompts.columns.prompt=question", "prompts.columns.system=system"],
        ),
        (json!({"a": 1}), ["it has `a`", "prompts.columns.prompt=NAME"]),
        (
            json!({"chosen": "a", "rejected": "b"}),
            ["it has `chosen`, `rejected`", "as lists of messages"],
        ),
        (
            json!({"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
            ["`prompt[0].content[0]`", "`image_url`, and only text is read"],
        ),
        (json!({"prompt": [{"role": "user"}]}), ["`prompt[0]`", "missing field `content`"]),
        (json!({"prompt": ["Hi"]}), ["`prompt[0]`", "`role` and `content`"]),
        (json!({"prompt": [{"role": 1, "content": "a"}]}), ["`prompt[0].role`", "expected text"]),
        (
            json!({"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]}),
            ["`messages[0].tool_calls`", "calls of tools"],
        ),
        (
            json!({"messages": {"role": ["user", "user"], "content": ["Hi"]}}),
            ["`messages.content`", "1 of 2 messages"],
        ),
        (
            json!({"prompt": "[{\"role\": \"user\", \"content\": \"Hi\"}]"}),
            ["`prompt`", "a list of messages written as a text"],
        ),
        (
            json!({"messages": "[{'from': 'human', 'value': 'Hi'}]"}),
            ["`messages`", "a list of messages written as a text"],
        ),
        (json!({"prompt": null, "question": "Hi"}), ["`prompt` is null", "leave the row out"]),
        (json!({"messages": "Hi"}), ["`messages`", "expected a list of messages"]),
        (json!({"prompt": true}), ["`prompt`", "text or a list of messages"]),
    ] {
        let error = words(&conversation(&row, &ColumnNames::default()).unwrap_err());
        for part in told {
            assert!(error.contains(part), "{row}: `{part}` is not in {error}");
        }
    }
}

#[test]
fn columns_of_other_names_are_read_by_the_settings() {
    let named = |names: Value| serde_json::from_value::<ColumnNames>(names).unwrap();
    let row =
        json!({"instruction": "Add", "input": "1, 2", "system": "Be brief", "question": "Hi"});
    for (names, expected) in [
        (json!({"prompt": "question"}), vec![message("user", "Hi")]),
        (json!({"prompt": ["instruction", "input"]}), vec![message("user", "Add\n\n1, 2")]),
        (json!({"prompt": ["question", "none"]}), vec![message("user", "Hi")]),
        (
            json!({"prompt": "question", "system": "system"}),
            vec![message("system", "Be brief"), message("user", "Hi")],
        ),
    ] {
        assert_eq!(conversation(&row, &named(names)).unwrap(), expected);
    }
    let error = words(&conversation(&row, &named(json!({"prompt": "none"}))).unwrap_err());
    assert!(error.contains("missing column `none` or `messages`; it has `instruction`"), "{error}");
    let says = |text: &str| json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]);
    let row = json!({"system": "Be brief", "chosen": says("a"), "rejected": says("b")});
    let expected = vec![message("system", "Be brief"), message("user", "Hi")];
    assert_eq!(conversation(&row, &named(json!({"system": "system"}))).unwrap(), expected);
    let pair = json!({"question": "Hi", "good": "a", "bad": "b"});
    let (_directory, path) = file("pairs.jsonl", pair.to_string());
    let names = named(json!({"prompt": "question", "chosen": "good", "rejected": "bad"}));
    let content = PairContent::Text {
        messages: vec![message("user", "Hi")],
        chosen: "a".into(),
        rejected: "b".into(),
    };
    assert_eq!(read_pairs_named(&path, Objective::Dpo, &names).unwrap()[0].content, content);
    let error = words(&read_pairs(&path, Objective::Dpo).unwrap_err());
    assert!(error.contains("missing column `chosen`") && error.contains("`good`"), "{error}");
}

#[test]
fn answers_at_the_end_of_conversations_are_left_out_on_request_alone() {
    let turn = |from: &str, value: &str| json!({"from": from, "value": value});
    let answered = json!({"conversations": [turn("human", "Hi"), turn("gpt", "Ho")]});
    let asked = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let error = words(&conversation(&answered, &ColumnNames::default()).unwrap_err());
    assert!(error.contains("ends with the assistant's message"), "{error}");
    assert!(error.contains("prompts.columns.answered=true"), "{error}");
    let names: ColumnNames = serde_json::from_value(json!({"answered": true})).unwrap();
    for row in [answered, asked] {
        assert_eq!(conversation(&row, &names).unwrap(), [message("user", "Hi")], "{row}");
    }
    let nothing_asked = json!({"conversations": [turn("gpt", "Ho")]});
    let error = words(&conversation(&nothing_asked, &names).unwrap_err());
    assert!(error.contains("the list of messages is empty"), "{error}");
}

#[test]
fn a_small_file_that_unpacks_to_a_line_without_end_is_refused() {
    use std::io::{Read as _, copy, repeat};
    let mut encoder = GzEncoder::new(b"".to_vec(), Compression::default());
    copy(&mut b"{\"prompt\": \"".chain(repeat(b'a').take(257 << 20)), &mut encoder).unwrap();
    let packed = encoder.finish().unwrap();
    assert!(packed.len() < 1 << 20);
    let (_directory, path) = file("rows.jsonl.gz", packed);
    let error = words(&read_prompts(&path).unwrap_err());
    assert!(error.contains("unpacks to more than 256 MiB"), "{error}");
}

#[test]
fn files_are_read_or_named_whatever_form_they_have() {
    let two = "{\"prompt\": \"Hi\"}\n{\"prompt\": \"Ho\"}\n";
    let array = "[{\"prompt\": \"Hi\"},\n {\"prompt\":\n\"Ho\"}]\n";
    let with_mark = [b"\xef\xbb\xbf", two.as_bytes()].concat();
    for (name, content) in [
        ("a.jsonl", two.into()),
        ("a.ndjson", two.replace('\n', "\r\n").into()),
        ("a.JSONL", format!("\n\n{two}\n  \n").into()),
        ("bom.jsonl", with_mark),
        ("a.jsonl", array.into()),
        ("a.json", array.into()),
        ("a.json", two.into()),
        ("pretty.json", "{\n  \"prompt\": \"Hi\"\n}\n{\n  \"prompt\": \"Ho\"\n}\n".into()),
        ("pretty.jsonl", "{\n  \"prompt\": \"Hi\"\n}\n{\n  \"prompt\": \"Ho\"\n}\n".into()),
        ("a.jsonl.gz", gzip(two)),
        ("a.json.gz", gzip(array)),
        ("gzip.jsonl", gzip(two)),
    ] {
        let (_directory, path) = file(name, content);
        let texts: Vec<String> = read_prompts(&path)
            .unwrap_or_else(|error| panic!("{name}: {error}"))
            .iter()
            .map(|prompt| prompt.messages[0].content.to_string())
            .collect();
        assert_eq!(texts, ["Hi", "Ho"], "{name}");
    }
    let one = file("one.json", "{\"prompt\":\n \"Hi\"}");
    assert_eq!(read_prompts(&one.1).unwrap().len(), 1);
}

#[test]
fn files_that_cannot_be_read_say_what_they_are() {
    let cases: [(&str, &[u8], [&str; 2]); 22] = [
        (
            "a.jsonl",
            b"{\"prompt\": \"a\", \"x\": NaN}",
            [":1: not a JSON object: NaN is not a number of JSON", "null"],
        ),
        (
            "a.jsonl",
            b"{\"prompt\": \"a\"}\n{\"x\": -Infinity}",
            [":2: ", "-Infinity is not a number of JSON"],
        ),
        ("a.jsonl", b"{\"x\": [1, inf]}", [":1: ", "inf is not a number"]),
        ("a.jsonl", b"{\"prompt\": None}", ["None is not JSON", "json.dumps"]),
        ("a.jsonl", b"{\"prompt\": True}", ["True is not JSON", "json.dumps"]),
        ("a.jsonl", b"{'prompt': 'a'}", ["double quotes", "json.dumps"]),
        ("a.jsonl", b"{\"prompt\": \"a\",}", ["comma", "last comma"]),
        ("a.jsonl", b"prompt,answer\nHi,Ho\n", ["begins with no bracket", "CSV"]),
        ("a.jsonl", b"{\"prompt\": \"a\"", [":1: not a JSON object", "EOF"]),
        ("a.jsonl", b"\"Hi\"\n", [":1: ", "a JSON object"]),
        (
            "a.jsonl",
            b"{\"prompt\": \"a\", \"prompt\": \"b\"}",
            [":1: ", "`prompt` stands in this row twice"],
        ),
        ("a.json", b"[{\"prompt\": \"a\"},\n\n {\"prompt\": NaN}]", [":3: ", "NaN"]),
        (
            "a.json",
            b"[{\"prompt\": \"a\"},\n {\"text\": \"b\"}]",
            [":2: missing column `prompt`", "it has `text`"],
        ),
        ("a.json", b"[\"Hi\"]", [":1: ", "a JSON object"]),
        ("a.json", b"\n[{\"prompt\": \"a\"},\n{\"prompt\": \"\xff\"}]", [":3: not UTF-8", "iconv"]),
        ("a.jsonl", b"\xff\xfe{\x00", ["is UTF-16 text", "iconv"]),
        ("a.jsonl", b"PAR1....", ["is Parquet", ".parquet"]),
        ("a.jsonl", b"\x28\xb5\x2f\xfd....", ["zstd", "zstd -d"]),
        ("a.parquet", b"{\"prompt\": \"a\"}", ["is JSON", ".jsonl"]),
        ("a.csv", b"prompt\nHi\n", ["commas", "to_json"]),
        ("a.arrow", b"ARROW1", ["Arrow files are not read", "to_parquet"]),
        ("a.jsonl.zst", b"", ["compressed", "gzip"]),
    ];
    for (name, content, told) in cases {
        let (_directory, path) = file(name, content);
        let error = words(&read_prompts(&path).unwrap_err());
        for part in told {
            assert!(error.contains(part), "{name}: `{part}` is not in {error}");
        }
    }
}

fn gzip(text: &str) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_pair_that_contradicts_itself_is_refused_with_its_line() {
    let turn = |role: &str, text: &str| json!({"role": role, "content": text});
    let says =
        |question: &str, answer: &str| json!([turn("user", question), turn("assistant", answer)]);
    let (sky, colour) = ("Why is the sky blue?", "Name a colour.");
    let whose = "`prompt` is not what the conversation in `chosen` asks";
    for (row, told) in [
        (json!({"prompt": sky, "chosen": says(colour, "a"), "rejected": says(colour, "b")}), whose),
        (
            json!({"prompt": [turn("user", sky)], "chosen": says(colour, "a"), "rejected": says(colour, "b")}),
            whose,
        ),
        (
            json!({"messages": [turn("user", sky)], "chosen": says(colour, "a"), "rejected": says(colour, "b")}),
            whose,
        ),
        (
            json!({"conversations": [{"from": "human", "value": sky}], "chosen": says(colour, "a"), "rejected": says(colour, "b")}),
            whose,
        ),
        (
            json!({"prompt": sky, "messages": [turn("user", colour)], "chosen": "a", "rejected": "b"}),
            "`prompt` is not what the conversation in `messages` asks",
        ),
        (
            json!({"chosen": says(sky, "a"), "rejected": says(colour, "b")}),
            "do not answer the same conversation",
        ),
        (
            json!({"prompt": colour, "chosen": says(colour, "a"), "rejected": "b"}),
            "do not answer the same conversation",
        ),
    ] {
        let (_directory, path) = file("pairs.jsonl", format!("\n{row}\n"));
        let error = words(&read_pairs(&path, Objective::Dpo).unwrap_err());
        assert!(error.contains("pairs.jsonl:2: ") && error.contains(told), "{row}: {error}");
    }
    let system = turn("system", "Be brief");
    for (row, length) in [
        (json!({"prompt": colour, "chosen": says(colour, "a"), "rejected": says(colour, "b")}), 1),
        (
            json!({"prompt": "Name a  colour.\n", "chosen": says(colour, "a"), "rejected": says(colour, "b")}),
            1,
        ),
        (
            json!({"prompt": [system, turn("user", colour)], "chosen": says(colour, "a"), "rejected": says(colour, "b")}),
            2,
        ),
        (
            json!({"prompt": [turn("user", colour)], "chosen": [turn("assistant", "a")], "rejected": [turn("assistant", "b")]}),
            1,
        ),
        (
            json!({
                "prompt": [turn("user", colour)],
                "chosen": [turn("assistant", "a"), turn("user", "More"), turn("assistant", "c")],
                "rejected": [turn("assistant", "a"), turn("user", "More"), turn("assistant", "d")],
            }),
            3,
        ),
        (
            json!({
                "conversations": [{"from": "human", "value": colour}],
                "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"},
            }),
            1,
        ),
    ] {
        let (_directory, path) = file("pairs.jsonl", row.to_string());
        let pairs =
            read_pairs(&path, Objective::Dpo).unwrap_or_else(|error| panic!("{row}: {error}"));
        let PairContent::Text { messages, .. } = &pairs[0].content else { panic!() };
        assert_eq!(messages.len(), length, "{row}");
    }
}

#[test]
fn pairs_that_contradict_each_other_are_found() {
    let row = |chosen: &str, rejected: &str, win: f64, lose: f64| {
        json!({
            "prompt": "Hi", "chosen": chosen, "rejected": rejected,
            "chosen_probs_win": win, "chosen_probs_lose": lose,
        })
    };
    let rows = [
        row("a", "b", 0.8, 0.2),
        row("a", "a", 0.8, 0.2),
        row("b", "a", 0.8, 0.2),
        row("c", "d", 0.2, 0.8),
        json!({"prompt_tokens": [1], "chosen_tokens": [2], "rejected_tokens": [2], "chosen_probs_win": 1, "chosen_probs_lose": 0}),
    ];
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    let pairs = parse_pairs("pairs", &lines.join("\n"), Objective::Sppo).unwrap();
    let expected =
        Contradictions { identical: vec![1, 4], reversed: vec![0, 2], worse_chosen: vec![3] };
    assert_eq!(Contradictions::among(&pairs), expected);
}

//! Requests to judges that rank, score groups and check criteria, and their replies.

use std::io::Write as _;

use serde_json::{Value, json};
use sppo_plugin::{Candidate, Message};

use super::*;
use crate::config::{GenrmConfig, GroupwiseConfig, RubricConfig};

fn comparison() -> Comparison<'static> {
    Comparison {
        prompt: [Message::user("Hi"), Message::assistant("Hello"), Message::user("2 + 2?")].into(),
        rendered_prompt: None,
        candidates: ["4", "5", "Four.", "4"].map(Candidate::from_text).into(),
    }
}

fn says(content: &str) -> Value {
    json!({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]})
}

/// The values of a reply, or `None` when none is valid.
fn read(protocol: &dyn Protocol, reply: &Value, count: usize) -> Option<Vec<f64>> {
    let read = protocol.read(reply.to_string().as_bytes(), count).unwrap();
    assert_eq!(read.verdicts.len(), count);
    read.verdicts.into_iter().map(|one| one.ok().map(QuestionVerdict::value)).collect()
}

fn genrm(genrm: GenrmConfig) -> Result<Box<dyn Protocol>, PluginError> {
    create(&HttpConfig { protocol: ProtocolName::NvidiaGenrm, genrm, ..HttpConfig::default() })
}

#[test]
fn the_two_answers_of_genrm_are_turns_of_their_own() {
    let principle = Some("Prefer digits.".to_owned());
    let protocol = genrm(GenrmConfig { principle, ..GenrmConfig::default() }).unwrap();
    let comparison = comparison();
    let question = Question { second: Some(1), ..Question::about(&comparison, 0) };
    let part = protocol.part(question).unwrap();
    assert_eq!(
        Value::Object(protocol.body(vec![part])),
        json!({
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "2 + 2?"},
                {"role": "response_1", "content": "4"},
                {"role": "response_2", "content": "5"},
                {"role": "principle", "content": "Prefer digits."},
            ],
            "temperature": 0.6,
            "top_p": 0.95,
            "max_tokens": 16384,
        })
    );
}

#[test]
fn rankings_are_probabilities_by_the_table_and_nothing_else_is_a_verdict() {
    let protocol = genrm(GenrmConfig::default()).unwrap();
    for (text, expected) in [
        (r#"{"score_1": 5, "score_2": 1, "ranking": 1}"#, 0.95),
        ("```json\n{\"score_1\": 4, \"score_2\": 3, \"ranking\": 3}\n```", 0.6),
        ("<think>ranking: 1?</think>\n{\"score_1\": 1, \"score_2\": 5, \"ranking\": 6}", 0.05),
        (r#"{"overall": {"score_1": 3, "score_2": 4, "ranking": 4}}"#, 0.4),
        (r#"{"ranking": "2"}"#, 0.8),
        ("{'score_1': 2, 'ranking': 5,}", 0.2),
        (r#"{"ranking": 1} No: {"ranking": 2}"#, 0.8),
    ] {
        assert_eq!(read(protocol.as_ref(), &says(text), 1), Some(vec![expected]), "{text}");
    }
    for text in [
        "",
        "Response 1 is better.",
        r#"{"score_1": 5, "score_2": 1}"#,
        r#"{"ranking": 0}"#,
        r#"{"ranking": 7}"#,
        r#"{"ranking": 3.5}"#,
        r#"{"ranking": null}"#,
        "ranking: -3",
        "<think>{\"ranking\": 1}",
    ] {
        assert_eq!(read(protocol.as_ref(), &says(text), 1), None, "{text}");
    }
    let mut cut = says(r#"{"ranking": 1}"#);
    cut["choices"][0]["finish_reason"] = json!("length");
    assert_eq!(read(protocol.as_ref(), &cut, 1), None);
    for probabilities in [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [1.5, 0.8, 0.6, 0.4, 0.2, 0.0]] {
        let error = genrm(GenrmConfig { probabilities, ..GenrmConfig::default() }).err().unwrap();
        assert!(error.to_string().contains("genrm.probabilities"), "{error}");
    }
}

fn groupwise(groupwise: GroupwiseConfig) -> Box<dyn Protocol> {
    let protocol = ProtocolName::OpenaiGroupwise;
    create(&HttpConfig { protocol, groupwise, ..HttpConfig::default() }).unwrap()
}

#[test]
fn a_group_is_shown_in_several_orders_that_follow_from_the_texts() {
    let protocol = groupwise(GroupwiseConfig { orders: 6, ..GroupwiseConfig::default() });
    let comparison = comparison();
    let questions = protocol.questions(&comparison);
    assert_eq!(questions.len(), 24);
    let mut shown = std::collections::BTreeSet::new();
    let mut places = std::collections::BTreeMap::new();
    for order in questions.chunks(4) {
        let parts: Vec<Part> = order.iter().map(|one| protocol.part(*one).unwrap()).collect();
        assert!(parts.iter().all(|part| part.shared == parts[0].shared));
        let numbers: Vec<u64> = parts.iter().filter_map(|part| part.own.as_u64()).collect();
        // Two of the four are the same text, which is shown once.
        assert!(numbers.is_sorted() && numbers.len() == 4 && numbers[0] == 1 && numbers[3] == 3);
        let mut different = parts.clone();
        different.dedup_by_key(|part| part.own.clone());
        let body = Value::Object(protocol.body(different));
        let text = body["messages"][1]["content"].as_str().unwrap().to_owned();
        let form = r#"{"scores": {"1": SCORE, "2": SCORE, "3": SCORE}}"#;
        assert!(text.ends_with(form), "{text}");
        for (question, number) in order.iter().zip(&numbers) {
            let place = format!("# Answer {number}\n\n{}\n", question.first_text());
            assert!(text.contains(&place), "{place} is not in {text}");
            *places.entry((question.first, *number)).or_insert(0) += 1;
        }
        shown.insert(text);
    }
    // The first three orders are turns of one, and so are the others.
    assert!(shown.len() >= 3, "{} orders", shown.len());
    assert_eq!(places.len(), 4 * 3);
    assert!(places.values().all(|times| *times == 2), "{places:?}");
}

#[test]
fn scores_of_a_group_are_read_whole_or_not_at_all() {
    let protocol = groupwise(GroupwiseConfig::default());
    for text in [
        r#"{"scores": {"1": 7, "2": 0, "3": 9.5}}"#,
        r#"{"scores": {"3": 9.5, "1": 7, "2": 0}}"#,
        "```json\n{\"scores\": {\"1\": \"7\", \"2\": 0, \"3\": 9.5}}\n```",
        "<think>{\"scores\": {\"1\": 1, \"2\": 1, \"3\": 1}}</think>{\"scores\": {\"1\": 7, \"2\": 0, \"3\": 9.5}}",
        r#"{"scores": [7, 0, 9.5]}"#,
        r#"{"1": 7, "2": 0, "3": 9.5}"#,
        r#"{"Answer 1": 7, "Answer 2": 0, "Answer 3": 9.5}"#,
        r#"{"scores": [{"answer": 2, "score": 0}, {"answer": 1, "explanation": "short", "score": 7}, {"answer": 3, "score": 9.5}]}"#,
        r#"{"scores": {"1": {"why": "short", "score": 7}, "2": {"score": 0}, "3": {"score": 9.5}}}"#,
    ] {
        let scores = read(protocol.as_ref(), &says(text), 3);
        assert_eq!(scores, Some(vec![7.0, 0.0, 9.5]), "{text}");
    }
    for text in [
        "",
        "Answer 1 is best.",
        r#"{"scores": {"1": 7, "2": 0}}"#,
        r#"{"scores": {"1": 7, "2": 0, "3": 9.5, "4": 1}}"#,
        r#"{"scores": {"1": 7, "2": 0, "4": 9.5}}"#,
        r#"{"scores": {"1": 7, "2": 0, "3": 11}}"#,
        r#"{"scores": {"1": 7, "2": -1, "3": 9}}"#,
        r#"{"scores": {"1": 7, "2": "good", "3": 9}}"#,
        r#"{"scores": [7, 0]}"#,
        r#"{"scores": [{"answer": 1, "score": 7}, {"answer": 1, "score": 0}, {"answer": 3, "score": 9.5}]}"#,
        r#"{"scores": {"1": 7, "2": 0, "3": 9.5"#,
    ] {
        assert_eq!(read(protocol.as_ref(), &says(text), 3), None, "{text}");
    }
}

fn rubric(content: &str, ask: RubricJudge) -> Result<Box<dyn Protocol>, PluginError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    let rubric = RubricConfig { file: Some(file.path().into()), ask, ..RubricConfig::default() };
    create(&HttpConfig { protocol: ProtocolName::OpenaiRubric, rubric, ..HttpConfig::default() })
}

const CRITERIA: &str = r#"[{"criterion": "It is right.", "weight": 3}, {"criterion": "It is long.", "weight": -1}, {"criterion": "It is kind."}]"#;

#[test]
fn criteria_are_asked_about_one_by_one_or_together() {
    let comparison = comparison();
    let chat = rubric(CRITERIA, RubricJudge::Chat).unwrap();
    let questions = chat.questions(&comparison);
    assert_eq!((questions.len(), chat.variants()), (12, 3));
    assert_eq!(chat.combination(), Combination::Criteria(vec![3.0, -1.0, 1.0]));
    let body = Value::Object(chat.body(vec![chat.part(questions[4]).unwrap()]));
    let text = body["messages"][1]["content"].as_str().unwrap();
    let words =
        "# Answer\n\n5\n\nDoes the answer meet this criterion? It is long.\n\nReply with yes or no";
    assert!(text.contains(words), "{text}");
    assert_eq!(body["logprobs"], true);
    assert_eq!(read(chat.as_ref(), &says("Yes."), 1), Some(vec![1.0]));
    assert_eq!(read(chat.as_ref(), &says("<think>yes</think>no"), 1), Some(vec![0.0]));
    assert_eq!(read(chat.as_ref(), &says("Perhaps"), 1), None);

    for (ask, field, kind, reply) in [
        (
            RubricJudge::Systemone,
            "state",
            "noul",
            json!({"answers": {"q1": {"type": "noul", "noul": 0.9}, "q2": {"type": "noul", "noul": 0.2, "x_label_mass": 0.01}, "q3": {"type": "noul", "noul": 0.5}}}),
        ),
        (
            RubricJudge::OpenaiDecisions,
            "input",
            "predicate",
            json!({"answers": [{"type": "predicate", "name": "q1", "probability": 0.9}, {"type": "refusal", "name": "q2"}, {"type": "predicate", "name": "q3", "probability": 0.5}]}),
        ),
    ] {
        let decides = rubric(CRITERIA, ask).unwrap();
        let questions = decides.questions(&comparison);
        let parts: Vec<Part> =
            questions[..3].iter().map(|one| decides.part(*one).unwrap()).collect();
        assert!(parts.iter().all(|part| part.shared == parts[0].shared));
        assert_ne!(decides.part(questions[3]).unwrap().shared, parts[0].shared);
        let body = Value::Object(decides.body(parts));
        assert!(body[field].as_str().unwrap().ends_with("# Answer\n\n4"), "{body}");
        let asked = body["questions"].get("q1").or_else(|| body["questions"].get(0)).unwrap();
        assert_eq!(asked["type"], kind);
        assert_eq!(asked["instructions"], "Does the answer meet this criterion? It is right.");
        let verdicts = decides.read(reply.to_string().as_bytes(), 3).unwrap().verdicts;
        let values: Vec<Option<f64>> =
            verdicts.into_iter().map(|one| one.ok().map(QuestionVerdict::value)).collect();
        assert_eq!(values, [Some(0.9), None, Some(0.5)], "{ask:?}");
    }
}

#[test]
fn files_that_are_no_rubric_are_refused_by_what_is_wrong() {
    for (content, named) in [
        ("", "EOF"),
        ("{}", "invalid type"),
        ("[]", "no criteria"),
        (r#"[{"criterion": " "}]"#, "criterion 1 says nothing"),
        (r#"[{"criterion": "a"}, {"criterion": "b", "weight": 0}]"#, "weight of criterion 2 is 0"),
        (r#"[{"criterion": "a", "wieght": 2}]"#, "wieght"),
        (r#"[{"weight": 2}]"#, "criterion"),
    ] {
        let error = rubric(content, RubricJudge::Chat).err().unwrap().to_string();
        assert!(error.contains("rubric.file") && error.contains(named), "{content}: {error}");
    }
    let missing = RubricConfig { file: Some("/nowhere.json".into()), ..RubricConfig::default() };
    for (rubric, named) in [(missing, "/nowhere.json"), (RubricConfig::default(), "rubric.file")] {
        let config =
            HttpConfig { protocol: ProtocolName::OpenaiRubric, rubric, ..HttpConfig::default() };
        let error = create(&config).err().unwrap().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn nemo_gym_is_sent_all_answers_and_its_made_up_ties_are_no_verdicts() {
    let genrm = GenrmConfig { principle: Some("Prefer digits.".into()), ..GenrmConfig::default() };
    let protocol = ProtocolName::NemoGymCompare;
    let protocol = create(&HttpConfig { protocol, genrm, ..HttpConfig::default() }).unwrap();
    let comparison = comparison();
    let questions = protocol.questions(&comparison);
    let parts: Vec<Part> = questions.iter().map(|one| protocol.part(*one).unwrap()).collect();
    // Answers that read the same are sent once.
    let numbers: Vec<u64> = parts.iter().map(|part| part.own.as_u64().unwrap()).collect();
    assert_eq!(numbers.iter().max(), Some(&3));
    assert!(numbers.is_sorted());
    let body = Value::Object(protocol.body(parts));
    assert_eq!(body["conversation_history"][2], json!({"role": "user", "content": "2 + 2?"}));
    assert_eq!(body["principle"], "Prefer digits.");
    let mut texts: Vec<&str> = body["response_objs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["output"][0]["content"][0]["text"].as_str().unwrap())
        .collect();
    texts.sort_unstable();
    assert_eq!(texts, ["4", "5", "Four."]);
    let reply = |ranking: f64| {
        json!({
            "rewards": [3.5, 4.2, 1],
            "comparison_results": [{"response_i": 0, "response_j": 1, "ranking": 2.0}, {"ranking": ranking}],
            "metrics": {},
        })
    };
    assert_eq!(read(protocol.as_ref(), &reply(6.0), 3), Some(vec![3.5, 4.2, 1.0]));
    assert_eq!(read(protocol.as_ref(), &reply(3.5), 3), None);
    assert_eq!(read(protocol.as_ref(), &json!({"rewards": ["1", 2]}), 2), Some(vec![1.0, 2.0]));
    for reply in [json!({"rewards": [1.0]}), json!({"rewards": [1.0, null]}), json!({})] {
        assert!(protocol.read(reply.to_string().as_bytes(), 2).is_err(), "{reply}");
    }
}

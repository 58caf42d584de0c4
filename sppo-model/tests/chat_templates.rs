//! Chat templates rendered as Jinja2 renders them; `data/chat-templates/make.py` says where the tables are
//! from.

use std::path::Path;

use serde_json::Value;
use sppo_model::text::ChatTemplate;
use sppo_plugin::{Conversation, Message};

/// What is left out, and what a message names then. Everything else in the table renders the same.
const LEFT_OUT: [(&str, &str); 9] = [
    ("translate(", "`translate`"),
    ("encode(", "`encode`"),
    ("-true", "invalid operation"),
    ("as_integer_ratio()", "`as_integer_ratio`"),
    ("\\N{", "`\\N`"),
    ("| random", "`random`"),
    ("| attr(", "`attr`"),
    ("'well-known words' | wordwrap", "`wordwrap`"),
    ("| urlize", "`urlize`"),
];

/// Operations on values of two kinds, and on what is undefined, which Python refuses and minijinja does not.
const LENIENT: [&str; 4] =
    ["{{ 'a' < 1 }}", "{{ 1 in 'abc' }}", "{{ [3, 'a'] | sort }}", "{{ nothing < 1 }}"];

/// Attributes of numbers and macros, and what Jinja2 alone defines; templates have no use for them.
const DIFFERENT: [&str; 5] =
    ["1.real", "range(10)[2:4]", "f.catch_varargs", "self is defined", "cycler("];

fn conversation() -> Conversation {
    let turn = |role: &'static str, content: &'static str| Message {
        role: role.into(),
        content: content.into(),
    };
    vec![
        turn("system", "Be brief."),
        turn("user", "Hi  there, one two one"),
        turn("assistant", "<think>\nhm\n</think>\n\nHello"),
        turn("user", " 7 é "),
    ]
}

fn template(source: &str) -> ChatTemplate {
    let token = |name: &str, token: &str| (name.to_string(), token.to_string());
    ChatTemplate::new(source, vec![token("bos_token", "<s>"), token("eos_token", "</s>")])
}

fn text<'a>(row: &'a Value, key: &str) -> Option<&'a str> {
    row[key].as_str()
}

fn table(name: &str) -> Vec<Value> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chat-templates");
    let lines = fs_err::read_to_string(directory.join(name)).unwrap();
    lines.split('\n').filter(|line| !line.is_empty()).map(|line| line.parse().unwrap()).collect()
}

#[test]
fn small_templates_render_as_in_jinja2_or_are_refused_by_name() {
    let rows = table("small.jsonl");
    assert!(rows.len() > 900);
    let mut wrong = Vec::new();
    for row in &rows {
        let source = text(row, "template").unwrap();
        let left_out = LEFT_OUT.iter().find(|(part, _)| source.contains(part));
        let right = match (template(source).render(&conversation(), true), text(row, "expected")) {
            (Ok(rendered), Some(expected)) => rendered == expected,
            (Ok(_), None) => LENIENT.contains(&source),
            (Err(error), Some(_)) => {
                left_out.is_some_and(|(_, name)| error.to_string().contains(name))
            }
            (Err(_), None) => true,
        };
        if !right && !DIFFERENT.iter().any(|part| source.contains(part)) {
            let rendered = template(source).render(&conversation(), true);
            wrong.push(format!("{row}\n  {rendered:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_templates_of_instruct_models_render_as_in_jinja2() {
    for row in table("shipped.jsonl") {
        let template = template(text(&row, "template").unwrap());
        for case in row["cases"].as_array().unwrap() {
            let messages: Conversation = serde_json::from_value(case["messages"].clone()).unwrap();
            let mut variables = case["variables"].as_object().unwrap().clone();
            let prompt = variables.remove("add_generation_prompt") != Some(false.into());
            let rendered =
                template.clone().with_variables(&variables).render(&messages, prompt).ok();
            assert_eq!(rendered.as_deref(), text(case, "expected"), "{}: {case}", row["name"]);
        }
    }
}

//! Chat templates rendered as Jinja2 renders them; `data/chat-templates/make.py` says where the tables are
//! from.

use std::path::Path;

use serde_json::Value;
use sppo_model::text::ChatTemplate;
use sppo_plugin::{Conversation, Message};

/// What is left out, and what a message names then. Everything else in the table renders the same.
const LEFT_OUT: [(&str, &str); 13] = [
    ("translate(", "`translate`"),
    ("encode(", "`encode`"),
    ("-true", "invalid operation"),
    ("as_integer_ratio()", "`as_integer_ratio`"),
    ("\\N{", "`\\N`"),
    ("| random", "`random`"),
    ("| attr(", "`attr`"),
    ("'well-known words' | wordwrap", "`wordwrap`"),
    ("| urlize", "`urlize`"),
    ("self is defined", "`self`"),
    ("self.a", "`self`"),
    ("cycler(", "`cycler`"),
    ("f.catch_varargs", "`catch_varargs`"),
];

/// Operations on values of two kinds, and on what is undefined, which Python refuses and minijinja does not.
const LENIENT: [&str; 4] =
    ["{{ 'a' < 1 }}", "{{ 1 in 'abc' }}", "{{ [3, 'a'] | sort }}", "{{ nothing < 1 }}"];

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
    assert!(rows.len() > 1000);
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
        if !right {
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

#[test]
fn no_template_panics_or_hangs() {
    let nested = |open: &str, close: &str, depth: usize| open.repeat(depth) + &close.repeat(depth);
    let templates = [
        nested("{% if true %}", "{% endif %}", 5_000),
        nested("{% for a in [1] %}", "{% endfor %}", 5_000),
        format!("{{{{ {} }}}}", nested("(", ")", 50_000)),
        format!("{{{{ {} }}}}", nested("[", "]", 50_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(50_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(50_000)),
        format!("{{{{ 1{} }}}}", " ~ 1".repeat(5_000)),
        format!("{{{{ 1{} }}}}", " % 2".repeat(500)),
        "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}".into(),
        "{% set ns = namespace(x='x') %}{% for i in range(90) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}".into(),
        "{% set ns = namespace(x='x') %}{% for i in range(90) %}{% set ns.x = ns.x + ns.x %}{% endfor %}".into(),
        "{{ 'x' * 100000000 }}{{ 'x' * 100000000 }}{{ 'x' * 100000000 }}{{ 'x' * 100000000 }}".into(),
        "{{ 'x'.ljust(999999999) }}".into(),
        "{{ '%999999999d' % 1 }}".into(),
        "{{ '{:999999999}'.format(1) }}".into(),
        "{{ ('x' * 100000).replace('', 'y' * 100000) }}".into(),
        "{{ ('x\n' * 100000) | indent(100000) }}".into(),
        "{{ ('y' * 100000).join('x' * 100000) }}".into(),
        "{% for a in range(99999) %}{{ range(99999) | list | length }}{% endfor %}".into(),
        "{% for a in range(99999) %}{{ ('x' * 99999).count('y') }}{% endfor %}".into(),
        "{{ range(10000000000000000000000000000000) }}".into(),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into(),
        "{% macro m() %}{{ varargs }}{{ m(1) }}{% endmacro %}{{ m() }}".into(),
        "{% set x = [x] %}".repeat(50_000),
        "{{ ".into(),
        format!("{{{{ 1{} }}}}", " + 1".repeat(50_000)),
        format!("{{{{ 1{} }}}}", " and 1".repeat(50_000)),
        format!("{{{{ a{} }}}}", ".b".repeat(50_000)),
        format!("{{{{ a{} }}}}", "|upper".repeat(50_000)),
        format!("{{{{ a{} }}}}", "()".repeat(50_000)),
        format!("{{{{ 1{} }}}}", " + 1".repeat(290)),
        format!("{{{{ a{} }}}}", ".b".repeat(290)),
        format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(20_000)),
        format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(290)),
        "{% for x in [1] %}{{ loop.cycle() }}{% endfor %}".into(),
        "{% for x in [1] %}{{ loop.cycle(*[]) }}{% endfor %}".into(),
        "{{ range(9)[1::9223372036854775807][::9223372036854775807][::9223372036854775807] }}".into(),
        "{{ ('x' * 100000)[::-1] }}{{ range(100000)[::-1] | list | length }}".into(),
        format!("{{{{ a{} }}}}", "[1:]".repeat(290)),
        format!("{{{{ a{} }}}}", ".items".repeat(290)),
        "{%".repeat(10_000),
        "{{ '\\".into(),
    ];
    for source in templates {
        let start = std::time::Instant::now();
        let _ = template(&source).render(&conversation(), true);
        assert!(start.elapsed().as_secs() < 5, "{}", source.chars().take(80).collect::<String>());
    }
}

#[test]
fn a_broken_tag_is_a_syntax_error_with_its_line() {
    for source in [
        "\n{%}{{ 1 }}%}",
        "\n{{%}x%}",
        "\n{%-}x-%}",
        "\n{% generation %}x{%endgeneration",
        "\n{% raw %}",
    ] {
        let error = template(source).render(&conversation(), true).unwrap_err().to_string();
        assert!(error.contains("syntax error") && error.contains("line 2"), "{source}: {error}");
    }
}

/// Every change of one byte of a template renders, or fails, and nothing else.
#[test]
fn changed_templates_never_panic() {
    for row in table("shipped.jsonl").iter().step_by(9) {
        let source = text(row, "template").unwrap();
        let places: Vec<usize> = source.char_indices().map(|(at, _)| at).collect();
        for (round, at) in places.iter().copied().enumerate().step_by(97) {
            let (before, behind) = source.split_at(at);
            let inserted = ["{%", "%}", "{{", "'", "(", "}", "{%-", "#}"][round / 97 % 8];
            let mut rest = behind.chars();
            rest.next();
            for changed in [
                format!("{before}{inserted}{behind}"),
                format!("{before}{}", rest.as_str()),
                before.into(),
            ] {
                let _ = template(&changed).render(&conversation(), true);
            }
        }
    }
}

//! Every configuration of the documentation is one that works.

use std::collections::BTreeSet;

use serde_json::Value;
use sppo_oracle_http::{HttpConfig, ProtocolName};
use sppo_plugin::create_oracle;

#[test]
fn the_configurations_of_the_page_are_accepted() {
    let page = include_str!("../../docs/http-oracle.md");
    let blocks = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut count = 0;
    let mut protocols = BTreeSet::new();
    for block in blocks {
        let mut config: toml::Table = toml::from_str(block).unwrap();
        let oracle = config["oracle"].as_table_mut().unwrap();
        assert_eq!(oracle["name"].as_str(), Some("http"));
        let settings = oracle["http"].as_table_mut().unwrap();
        // The variable is the reader's.
        settings.remove("api_key_env");
        if let Some(rubric) = settings.get_mut("rubric").and_then(toml::Value::as_table_mut) {
            let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/rubric.json");
            assert_eq!(rubric.insert("file".into(), file.into()), Some("rubric.json".into()));
        }
        protocols.insert(settings["protocol"].as_str().unwrap().to_owned());
        let settings = serde_json::to_value(settings).unwrap();
        let oracle =
            create_oracle("http", settings).unwrap_or_else(|error| panic!("{error}\n{block}"));
        assert!(oracle.identity().is_some() && oracle.expected_requests(10, 5).is_some());
        count += 1;
    }
    assert!(count >= 8, "only {count} configurations were found");
    let schema = schemars::schema_for!(ProtocolName).to_value();
    let all = schema["oneOf"].as_array().unwrap().iter();
    let all: BTreeSet<String> = all.map(|one| one["const"].as_str().unwrap().to_owned()).collect();
    assert_eq!(protocols, all, "each protocol has an example");
    let rubric: Value = serde_json::from_str(include_str!("../examples/rubric.json")).unwrap();
    let shown = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert_eq!(serde_json::from_str::<Value>(shown).unwrap(), rubric);
}

#[test]
fn wrong_settings_are_refused_with_their_key() {
    for (settings, wanted) in [
        (r#"{}"#, "endpoints"),
        (r#"{"endpoints": ["localhost:8000"]}"#, "endpoints"),
        (r#"{"endpoints": ["http://h"], "protocol": "openai-judge"}"#, "model"),
        (r#"{"endpoints": ["http://h"], "protocol": "rest"}"#, "protocol"),
        (r#"{"endpoints": ["http://h"], "protocol": "openai-decisions"}"#, "model"),
        (r#"{"endpoints": ["http://h"], "protocol": "openai-groupwise"}"#, "model"),
        (
            r#"{"endpoints": ["http://h"], "protocol": "openai-rubric", "model": "m"}"#,
            "rubric.file",
        ),
        (r#"{"endpoints": ["http://h"], "decision": {"scpoe": "prompt"}}"#, "scpoe"),
        (
            r#"{"endpoints": ["http://h"], "protocol": "openai-groupwise", "model": "m", "groupwise": {"lowest": 10}}"#,
            "groupwise.lowest",
        ),
        (
            r#"{"endpoints": ["http://h"], "protocol": "systemone", "judge": {"min_label_probability": 2}}"#,
            "judge.min_label_probability",
        ),
        (r#"{"endpoints": ["http://h"], "retires": {}}"#, "retires"),
        (r#"{"endpoints": ["http://h"], "concurrency": {"max": 0}}"#, "concurrency"),
        (
            r#"{"endpoints": ["http://h"], "timeouts": {"read_seconds": 0}}"#,
            "timeouts.read_seconds",
        ),
        (r#"{"endpoints": ["http://h"], "retries": {"max_attempts": 0}}"#, "retries"),
        (r#"{"endpoints": ["http://h"], "headers": {"Authorization": "x"}}"#, "headers"),
        (r#"{"endpoints": ["http://h"], "certificates": "/nowhere.pem"}"#, "certificates"),
        (r#"{"endpoints": ["http://h"], "api_key_env": "SPPO_TEST_UNSET"}"#, "api_key_env"),
        (
            r#"{"endpoints": ["http://h"], "protocol": "vllm-classify", "scoring": {"class": "x"}}"#,
            "scoring.class",
        ),
    ] {
        let error = create_oracle("http", serde_json::from_str(settings).unwrap()).err().unwrap();
        assert!(error.to_string().contains(wanted), "{settings}: {error}");
    }
}

#[test]
fn every_setting_is_described() {
    let schema = schemars::schema_for!(HttpConfig).to_value();
    fn check(schema: &serde_json::Value, path: &str) {
        let properties = schema.get("properties").and_then(serde_json::Value::as_object);
        for (name, property) in properties.into_iter().flatten() {
            assert!(property.get("description").is_some(), "{path}{name} is not described");
        }
    }
    check(&schema, "");
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        check(definition, &format!("{name}."));
    }
}

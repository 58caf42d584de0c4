//! Every configuration of the documentation is one that works, and invalid ones are refused.

use sppo_oracle_judge as _;
use sppo_plugin::create_oracle;

#[test]
fn the_configurations_of_the_page_are_accepted() {
    let page = include_str!("../../../docs/judge-oracle.md");
    let blocks = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut count = 0;
    for block in blocks {
        let config: toml::Table = toml::from_str(block).unwrap();
        let oracle = config["oracle"].as_table().unwrap();
        assert_eq!(oracle["name"].as_str(), Some("judge"));
        let settings = serde_json::to_value(&oracle["judge"]).unwrap();
        create_oracle("judge", settings).unwrap_or_else(|error| panic!("{error}\n{block}"));
        count += 1;
    }
    assert!(count >= 4, "only {count} configurations were found");
}

#[test]
fn invalid_settings_are_refused_with_their_key() {
    for (settings, wanted) in [
        (r#"{"model": ""}"#, "model"),
        (r#"{"batch_tokens": 0}"#, "batch_tokens"),
        (r#"{"min_label_probability": 1.5}"#, "min_label_probability"),
        (r#"{"max_invalid_share": -1}"#, "max_invalid_share"),
        (r#"{"model": "start", "revision": "main"}"#, "revision"),
        (r#"{"backend": "tch"}"#, "backend"),
        (r#"{"preset": "pair-preference", "answer_prefix": "It is"}"#, "answer_prefix"),
        (r#"{"modle": "org/name"}"#, "modle"),
    ] {
        let error = create_oracle("judge", serde_json::from_str(settings).unwrap()).err().unwrap();
        assert!(error.to_string().contains(wanted), "{settings}: {error}");
    }
}

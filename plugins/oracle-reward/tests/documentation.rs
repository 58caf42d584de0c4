//! Every configuration of the documentation is one that works, and invalid ones are refused.

use sppo_oracle_reward as _;
use sppo_plugin::create_oracle;

#[test]
fn the_configurations_of_the_page_are_accepted() {
    let page = include_str!("../../../docs/reward-oracle.md");
    let blocks = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut count = 0;
    for block in blocks {
        let config: toml::Table = toml::from_str(block).unwrap();
        let oracle = config["oracle"].as_table().unwrap();
        assert_eq!(oracle["name"].as_str(), Some("reward"));
        let settings = serde_json::to_value(&oracle["reward"]).unwrap();
        create_oracle("reward", settings).unwrap_or_else(|error| panic!("{error}\n{block}"));
        count += 1;
    }
    assert!(count >= 4, "only {count} configurations were found");
}

#[test]
fn invalid_settings_are_refused_with_their_key() {
    for (settings, wanted) in [
        (r#"{}"#, "model"),
        (r#"{"model": "org/name", "batch_tokens": 0}"#, "batch_tokens"),
        (r#"{"model": "org/name", "maximum_tokens": 3}"#, "maximum_tokens"),
        (r#"{"model": "org/name", "modle": "org/name"}"#, "modle"),
    ] {
        let error = create_oracle("reward", serde_json::from_str(settings).unwrap()).err().unwrap();
        assert!(error.to_string().contains(wanted), "{settings}: {error}");
    }
}

//! Every configuration of the documentation is one that works, and invalid ones are refused.

use sppo_oracle_pairrm as _;
use sppo_plugin::create_oracle;

#[test]
fn the_configurations_of_the_page_are_accepted() {
    let page = include_str!("../../docs/pairrm-oracle.md");
    let blocks = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut count = 0;
    for block in blocks {
        let config: toml::Table = toml::from_str(block).unwrap();
        let oracle = config["oracle"].as_table().unwrap();
        assert_eq!(oracle["name"].as_str(), Some("pairrm"));
        let settings = oracle.get("pairrm").cloned().unwrap_or(toml::Table::new().into());
        let settings = serde_json::to_value(settings).unwrap();
        create_oracle("pairrm", settings).unwrap_or_else(|error| panic!("{error}\n{block}"));
        count += 1;
    }
    assert!(count >= 5, "only {count} configurations were found");
}

#[test]
fn invalid_settings_are_refused_with_their_key() {
    for (settings, wanted) in [
        (r#"{"batch_tokens": 0}"#, "batch_tokens"),
        (r#"{"model": ""}"#, "model"),
        (r#"{"orders": "none"}"#, "orders"),
        (r#"{"prompt_veiw": "raw"}"#, "prompt_veiw"),
    ] {
        let error = create_oracle("pairrm", serde_json::from_str(settings).unwrap()).err().unwrap();
        assert!(error.to_string().contains(wanted), "{settings}: {error}");
    }
}

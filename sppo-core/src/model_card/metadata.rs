//! The YAML metadata of a card, by which the hub finds and files a model.

use std::fmt::Write as _;

use super::ModelCard;

/// Line before and after the metadata.
const FENCE: &str = "---";
const TAGS: [&str; 4] = ["generated_from_trainer", "sppo", "sppo-rs", "preference-optimization"];

/// The metadata with their fences.
pub(super) fn render(card: &ModelCard<'_>) -> String {
    let mut text = format!("{FENCE}\n");
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key}: {}", scalar(value));
    };
    if let Some(base) = card.base_model() {
        line("base_model", base);
    }
    line("library_name", if card.has_adapters() { "peft" } else { "transformers" });
    line("model_name", &card.identity.config.name);
    line("pipeline_tag", "text-generation");
    if let Some(license) = card.license() {
        line("license", license);
    }
    list(&mut text, "datasets", card.publication.datasets.iter().map(String::as_str));
    list(&mut text, "tags", TAGS.into_iter());
    text + FENCE + "\n"
}

fn list<'a>(text: &mut String, key: &str, items: impl Iterator<Item = &'a str>) {
    let items: Vec<String> = items.map(scalar).collect();
    if !items.is_empty() {
        let _ = writeln!(text, "{key}: [{}]", items.join(", "));
    }
}

/// A text as YAML: as it is where it can be nothing but text, else in quotes with JSON's escapes, which YAML shares.
fn scalar(text: &str) -> String {
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._/-".contains(c));
    let is_value = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
        .contains(&text.to_ascii_lowercase().as_str());
    match is_word && !is_value {
        true => text.to_owned(),
        false => serde_json::Value::from(text).to_string(),
    }
}

/// The licence that a card declares, by the hub's identifier; `None` without one, or where it is no single word.
#[must_use]
pub fn declared_license(card: &str) -> Option<String> {
    let mut lines = card.lines();
    if lines.next()?.trim_end() != FENCE {
        return None;
    }
    let mut metadata = lines.take_while(|line| line.trim_end() != FENCE);
    let value = metadata.find_map(|line| line.strip_prefix("license:"))?;
    let value = value.split(" #").next().unwrap_or_default().trim();
    let word = value.trim_matches(['"', '\'']);
    let is_word =
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "._/+-".contains(c));
    is_word.then(|| word.to_owned())
}

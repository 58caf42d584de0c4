//! Names of models for files and benchmarks.

use std::path::{Component, Path};

/// A name for a model that was named by this path or hub id: its last part that says something.
/// `runs/mine/iteration-3/checkpoint` is `mine-iteration-3`.
pub(super) fn name_of_model(model: &str) -> String {
    let path = Path::new(model);
    let stem = match path.extension().is_some_and(|extension| extension == "gguf") {
        true => path.with_extension(""),
        false => path.to_path_buf(),
    };
    let parts = stem.components().filter_map(|component| match component {
        Component::Normal(part) => part.to_str(),
        _ => None,
    });
    let mut name = Vec::new();
    for part in parts.collect::<Vec<_>>().into_iter().rev() {
        match part {
            "checkpoint" => {}
            _ if part.starts_with("iteration-") => name.insert(0, part),
            _ => {
                name.insert(0, part);
                break;
            }
        }
    }
    if name.is_empty() { "model".into() } else { name.join("-") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_after_its_run() {
        for (model, expected) in [
            ("runs/mine/iteration-3/checkpoint", "mine-iteration-3"),
            ("runs/mine/iteration-3/checkpoint/", "mine-iteration-3"),
            ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
            ("models/start-1.5b.gguf", "start-1.5b"),
            ("checkpoint", "model"),
            ("../", "model"),
        ] {
            assert_eq!(name_of_model(model), expected);
        }
    }
}

use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::datasets::PromptsPerIteration;
use crate::plugin::Optimizer;
use crate::plugins::check_sections;
use crate::records::Prompt;
use crate::stages::{ReferenceLogProbs, TokenizationRule};
use crate::win_rate::WinRateEstimator;

fn flags(assignments: &[&str]) -> Layers {
    let overrides =
        assignments.iter().map(|text| Override::parse("--set", text).unwrap()).collect();
    Layers { overrides, ..Layers::default() }
}

fn refusal(layers: &Layers) -> (String, String) {
    let checked = Config::resolve(layers).and_then(|resolved| check_sections(&resolved));
    let error = checked.unwrap_err();
    (error.to_string(), error.hint().unwrap_or_default().to_owned())
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn later_layers_win_and_are_remembered() {
    let first = file("seed = 7\n[training]\neta = 10\nepochs = 2\n");
    let second = file("[training]\neta = 20\n[backend.candle]\nthreads = 2\n");
    let layers = Layers {
        preset: Some(Preset::Official),
        files: vec![first.path().into(), second.path().into()],
        overrides: vec![
            Override::parse("--set", "training.planned_epochs = 3").unwrap(),
            Override::set("--model", "model", "dir/model").unwrap(),
        ],
    };
    let Resolved { config, sources } = Config::resolve(&layers).unwrap();
    assert_eq!((config.seed, config.training.eta, config.training.epochs), (7, 20.0, 2));
    assert_eq!(config.sampling.temperature, 0.7);
    assert_eq!(config.training.planned_epochs, Some(3));
    assert_eq!(config.model, "dir/model");
    assert_eq!(config.backend.chosen_settings(), serde_json::json!({"threads": 2}));
    assert_eq!(sources["training.eta"], Source::File(second.path().into()));
    assert_eq!(sources["training.epochs"], Source::File(first.path().into()));
    assert_eq!(sources["sampling.top_p"], Source::Preset(Preset::Official));
    assert_eq!(sources["model"], Source::Flag("--model".into()));
    assert_eq!(sources["run_directory"], Source::Default);
}

#[test]
fn log_probabilities_of_another_sampler_are_not_trained_on() {
    let reference = |assignments: &[&str]| {
        let config = Config::resolve(&flags(assignments)).unwrap().config;
        config.training.reference_log_probs
    };
    assert_eq!(reference(&[]), ReferenceLogProbs::Recorded);
    assert_eq!(reference(&["sampler.name=vllm"]), ReferenceLogProbs::Recomputed);
    let recorded = "training.reference_log_probs=recorded";
    assert_eq!(reference(&[recorded]), ReferenceLogProbs::Recorded);
    let (message, _) = refusal(&flags(&["sampler.name=vllm", recorded]));
    assert!(message.contains("`recorded` are those of the sampler `vllm`"), "{message}");
    let (message, hint) = refusal(&flags(&["sampler.vlm.model=x", "sampler.name=vllm"]));
    assert!(message.contains("there is no sampler named `vlm`"), "{message}");
    assert!(hint.contains("[sampler.vllm]"), "{hint}");
}

#[test]
fn the_official_preset_is_the_released_recipe() {
    let layers = Layers { preset: Some(Preset::Official), ..Layers::default() };
    let config = Config::resolve(&layers).unwrap().config;
    let SamplingSettings { samples_per_prompt, temperature, top_p, max_new_tokens, .. } =
        config.sampling;
    assert_eq!((samples_per_prompt, temperature, top_p, max_new_tokens), (5, 0.7, 0.9, 2048));
    let training = config.training;
    assert_eq!((training.eta, training.learning_rate, training.warmup_ratio), (1000.0, 5e-7, 0.1));
    assert_eq!((training.epochs, training.planned_epochs), (1, Some(1)));
    assert_eq!(training.global_batch_size, 64);
    assert_eq!((training.max_length, training.max_prompt_length), (Some(1024), Some(512)));
    assert_eq!(training.max_gradient_norm, None);
    assert_eq!(training.tokenization, TokenizationRule::Official);
    assert_eq!(training.optimizer, Optimizer::RmsProp { alpha: 0.99, epsilon: 1e-8 });
    assert!(config.selection.keep_degenerate);
    assert_eq!(config.preference.estimator, WinRateEstimator::Aggregate);
}

#[test]
fn the_paper_preset_plans_eighteen_epochs_and_does_one() {
    let layers = Layers { preset: Some(Preset::Paper), ..Layers::default() };
    let config = Config::resolve(&layers).unwrap().config;
    assert_eq!((config.sampling.temperature, config.sampling.top_p), (1.0, 1.0));
    assert_eq!((config.training.epochs, config.training.planned_epochs), (1, Some(18)));
    assert_eq!(config.preference.estimator, WinRateEstimator::Pairwise);
}

#[test]
fn every_preset_resolves_and_survives_toml() {
    for preset in Preset::ALL {
        let layers = Layers { preset: Some(preset), ..Layers::default() };
        let config = Config::resolve(&layers).unwrap().config;
        let written = file(&config.to_toml().unwrap());
        let layers = Layers { files: vec![written.path().into()], ..Layers::default() };
        let again = Config::resolve(&layers).unwrap().config;
        assert_eq!(config.differences(&again).unwrap(), []);
        assert_eq!(config, again);
    }
}

#[test]
fn unknown_keys_are_refused_with_a_suggestion() {
    let misspelt = file("[training]\nlerning_rate = 1e-6\n");
    let layers = Layers { files: vec![misspelt.path().into()], ..Layers::default() };
    let (message, hint) = refusal(&layers);
    let name = misspelt.path().display();
    assert_eq!(message, format!("{name}: training.lerning_rate: there is no such setting"));
    assert_eq!(hint, "did you mean `training.learning_rate`?");

    let (_, hint) = refusal(&flags(&["eta=3"]));
    assert_eq!(hint, "did you mean `training.eta`?");
    let (_, hint) = refusal(&flags(&["trainig.eta=3"]));
    assert_eq!(hint, "did you mean `training`?");
    let (message, _) = refusal(&flags(&["training.optimizer.alpah=0.9"]));
    assert_eq!(message, "--set: training.optimizer.alpah: there is no such setting");
    let (_, hint) = refusal(&flags(&["evaluation.zzz=3"]));
    assert!(hint.starts_with("known here: bootstrap_resamples, confidence"), "{hint}");
    let (_, hint) = refusal(&flags(&["backend.candel.threads=3"]));
    assert_eq!(hint, "did you mean `[backend.candle]`?");
}

#[test]
fn malformed_values_name_layer_and_key() {
    let wrong = file("[training]\neta = \"many\"\n");
    let layers = Layers { files: vec![wrong.path().into()], ..Layers::default() };
    let (message, _) = refusal(&layers);
    let name = wrong.path().display();
    assert_eq!(
        message,
        format!("{name}: training.eta: invalid type: string \"many\", expected a number")
    );
    let broken = file("seed = 1\n[training\n");
    let layers = Layers { files: vec![broken.path().into()], ..Layers::default() };
    assert!(refusal(&layers).0.contains(".toml:2: "), "{}", refusal(&layers).0);
    let (message, hint) = refusal(&flags(&["backend=candle"]));
    assert!(message.starts_with("--set: backend: "), "{message}");
    assert!(hint.contains("backend.name"), "{hint}");
    assert!(Override::parse("--set", "training.eta").is_err());
    assert!(Override::parse("--set", "training..eta=3").is_err());
}

#[test]
fn senseless_values_are_refused() {
    for (assignment, key) in [
        ("sampling.samples_per_prompt=1", "sampling.samples_per_prompt"),
        ("training.eta=0", "training.eta"),
        ("training.eta=inf", "training.eta"),
        ("training.eta=nan", "training.eta"),
        ("oracle.rules.length.weight=inf", "oracle.rules.length.weight"),
        ("template_variables={limits=[1, -inf]}", "template_variables.limits"),
        ("training.warmup_ratio=1.5", "training.warmup_ratio"),
        ("sampling.top_p=0", "sampling.top_p"),
        ("training.label_smoothing=0.5", "training.label_smoothing"),
        ("training.tokenization=official", "training.tokenization"),
        ("evaluation.confidence=1", "evaluation.confidence"),
        ("name=../elsewhere", "name"),
        ("iterations=0", "iterations"),
        ("training.optimizer={type=\"sgd\", momentum=1.0}", "training.optimizer"),
        // What f32 rounds to 0 is divided by as well.
        ("training.optimizer={type=\"rmsprop\", epsilon=0}", "training.optimizer"),
        ("training.optimizer={type=\"adamw\", epsilon=1e-60}", "training.optimizer"),
        // These had no effect, or failed once everything had been sampled and judged.
        ("training.max_prompt_length=100", "training.max_prompt_length"),
        ("selection.strategy=all", "selection.strategy"),
    ] {
        let (message, hint) = refusal(&flags(&[assignment]));
        assert!(message.contains(&format!("{key}: ")), "{assignment}: {message}");
        assert!(!hint.is_empty(), "{assignment}");
    }
}

#[test]
fn another_optimizer_replaces_the_constants_of_the_first() {
    let layers = flags(&["training.optimizer.type=adamw", "training.optimizer.weight_decay=0.1"]);
    let config = Config::resolve(&layers).unwrap().config;
    assert_eq!(
        config.training.optimizer,
        Optimizer::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 }
    );
}

#[test]
fn differences_name_key_and_values() {
    let before = Config::default();
    let mut after = before.clone();
    after.training.eta = 10.0;
    after.backend.settings.insert("candle".into(), serde_json::json!({"threads": 2}));
    let found: Vec<String> =
        before.differences(&after).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(found, ["backend.candle.threads: not set -> 2", "training.eta: 1000.0 -> 10.0"]);
}

#[test]
fn every_key_is_documented() {
    fn check(schema: &Value, path: &str) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            // The tag of an enumeration is explained by its variant.
            if name != "type" {
                assert!(property.get("description").is_some(), "{path} has no description");
            }
        }
        for (name, definition) in schema["$defs"].as_object().into_iter().flatten() {
            check(definition, name);
        }
        for alternative in schema["oneOf"].as_array().into_iter().flatten() {
            check(alternative, path);
        }
    }
    check(&Config::json_schema(), "config");
}

proptest! {
    #[test]
    fn portions_cover_every_prompt_once(count in 0usize..50, iterations in 1u32..9) {
        let prompts: Vec<Prompt> =
            (0..count as u64).map(|id| Prompt { id, messages: Vec::new() }).collect();
        let table =
            PromptSettings { per_iteration: PromptsPerIteration::Portions, ..Default::default() };
        let portions: Vec<&[Prompt]> =
            (1..=iterations).map(|i| table.of_iteration(&prompts, i, iterations)).collect();
        prop_assert_eq!(&portions.concat(), &prompts);
        let sizes = portions.iter().map(|portion| portion.len());
        prop_assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
    }
}

#[test]
fn variables_of_the_chat_template_are_recorded_under_either_name() {
    let nested = file("[model.template_variables]\nenable_thinking = false\n");
    let plain = file("[template_variables]\nenable_thinking = false\n");
    let files = |file: &tempfile::NamedTempFile| Layers {
        files: vec![file.path().into()],
        ..Layers::default()
    };
    let model = Layers {
        overrides: vec![
            Override::set("--model", "model", "dir/model").unwrap(),
            Override::parse("--set", "model.template_variables.enable_thinking=false").unwrap(),
        ],
        ..Layers::default()
    };
    let flag = flags(&["template_variables.enable_thinking=false"]);
    for layers in [files(&nested), files(&plain), model, flag] {
        let config = Config::resolve(&layers).unwrap().config;
        assert_eq!(config.template_variables_json(), r#"{"enable_thinking":false}"#);
        let read_back: Config = toml::from_str(&config.to_toml().unwrap()).unwrap();
        assert_eq!(read_back.template_variables, config.template_variables);
        let before = Config { model: config.model.clone(), ..Config::default() };
        let changed = before.differences(&config).unwrap();
        assert_eq!(changed[0].key, "template_variables.enable_thinking", "{changed:?}");
    }
    assert_eq!(Config::default().template_variables_json(), "");
}

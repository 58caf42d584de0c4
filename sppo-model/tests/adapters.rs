//! Adapters as PEFT and others write them: every form of their settings is read or refused by name.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use sppo_model::checkpoint::{Checkpoint, TensorData};
use support::{fixture, refusal, tensors, write_json, write_safetensors};

const LAYERS: usize = 3;

/// `q_proj` and `v_proj` of every layer.
fn usual_modules() -> Vec<String> {
    let module =
        |layer| ["q_proj", "v_proj"].map(|name| format!("model.layers.{layer}.self_attn.{name}"));
    (0..LAYERS).flat_map(module).collect()
}

fn output_size(module: &str) -> usize {
    match module {
        "lm_head" => 512,
        module if module.ends_with("q_proj") => 64,
        _ => 32,
    }
}

/// The matrices of an adapter, whose values differ from module to module.
fn matrices(
    modules: &[String],
    rank: impl Fn(&str) -> usize,
) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let of_module = |(number, module): (usize, &String)| {
        let (rank, output) = (rank(module), output_size(module));
        let values =
            |count: usize| (0..count).map(|i| ((i * 7 + number * 3) % 11) as f32 / 50.0).collect();
        [
            (format!("base_model.model.{module}.lora_A.weight"), vec![rank, 64], values(rank * 64)),
            (
                format!("base_model.model.{module}.lora_B.weight"),
                vec![output, rank],
                values(output * rank),
            ),
        ]
    };
    modules.iter().enumerate().flat_map(of_module).collect()
}

fn usual_config() -> Value {
    json!({
        "base_model_name_or_path": fixture("llama"), "peft_type": "LORA", "r": 2, "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"], "bias": "none", "init_lora_weights": true,
        "task_type": "CAUSAL_LM", "peft_version": "0.18.0", "inference_mode": true,
        "alora_invocation_tokens": null, "arrow_config": null, "auto_mapping": null,
        "corda_config": null, "ensure_weight_tying": false, "eva_config": null, "exclude_modules": null,
        "fan_in_fan_out": false, "layer_replication": null, "layers_pattern": null,
        "layers_to_transform": null, "loftq_config": {}, "lora_bias": false, "lora_dropout": 0.0,
        "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null,
        "qalora_group_size": 16, "rank_pattern": {}, "alpha_pattern": {}, "revision": null,
        "target_parameters": null, "trainable_token_indices": null, "use_dora": false,
        "use_qalora": false, "use_rslora": false,
    })
}

fn write(directory: &Path, changes: &Value, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let mut config = usual_config();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    write_json(&directory.join("adapter_config.json"), &config);
    let metadata = json!({"format": "pt"});
    write_safetensors(&directory.join("adapter_model.safetensors"), &metadata, tensors);
}

fn merged(changes: &Value, parts: &[(String, Vec<usize>, Vec<f32>)]) -> Vec<(String, TensorData)> {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), changes, parts);
    tensors(
        &Checkpoint::open(directory.path()).unwrap_or_else(|error| panic!("{changes}: {error}")),
    )
}

fn refused(changes: &Value, parts: &[(String, Vec<usize>, Vec<f32>)], expected: &str) {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), changes, parts);
    let error = refusal(directory.path());
    assert!(error.contains(expected), "{changes}: {error}");
}

#[test]
fn adapters_that_belong_to_a_changed_model_are_refused_by_name() {
    let usual = matrices(&usual_modules(), |_| 2);
    let plain = merged(&json!({}), &usual);
    for sound in [
        json!(true),
        json!(false),
        json!(null),
        json!("gaussian"),
        json!("Gaussian"),
        json!("eva"),
        json!("orthogonal"),
    ] {
        assert_eq!(merged(&json!({"init_lora_weights": sound}), &usual), plain);
    }
    for changing in ["pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga"] {
        let name = format!("`init_lora_weights` is `{}`", changing.to_lowercase());
        refused(&json!({"init_lora_weights": changing}), &usual, &name);
    }
    for unknown in [json!("random_svd"), json!("true"), json!(1)] {
        refused(&json!({"init_lora_weights": unknown}), &usual, "`init_lora_weights`");
    }
}

#[test]
fn variants_of_lora_are_refused_by_name() {
    let usual = matrices(&usual_modules(), |_| 2);
    for changes in [
        json!({"peft_type": "ADALORA"}),
        json!({"peft_type": "LOHA"}),
        json!({"peft_type": "IA3"}),
        json!({"bias": "all"}),
        json!({"bias": "lora_only"}),
        json!({"use_dora": true}),
        json!({"fan_in_fan_out": true}),
        json!({"lora_bias": true}),
        json!({"use_qalora": true}),
        json!({"alora_invocation_tokens": [5, 6]}),
        json!({"arrow_config": {"top_k": 3}}),
        json!({"kasa_config": {"beta": 0.1}}),
        json!({"use_bdlora": {"nblocks": 2}}),
        json!({"layer_replication": [[0, 2]]}),
        json!({"megatron_config": {"tensor_model_parallel_size": 2}}),
        json!({"target_parameters": ["experts.down_proj"]}),
        json!({"trainable_token_indices": [3]}),
        json!({"use_something_of_next_year": true}),
        json!({"something": 0.5}),
        json!({"something": "else"}),
        json!({"alora_invocation_string": "<|x|>"}),
    ] {
        let key = changes.as_object().unwrap().keys().next().unwrap();
        refused(&changes, &usual, &format!("`{key}` = "));
    }
    let plain = merged(&json!({}), &usual);
    for empty in [json!(null), json!(false), json!(""), json!([]), json!({})] {
        assert_eq!(merged(&json!({"something_of_next_year": empty}), &usual), plain);
    }
    for name in [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_E",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.vision_tower.layers.0.self_attn.q_proj.lora_A.weight",
    ] {
        let mut with = usual.clone();
        with.push((name.into(), vec![1], vec![1.0]));
        refused(&json!({}), &with, &format!("holds `{name}`"));
    }
}

#[test]
fn modules_in_every_form_are_those_of_the_file() {
    let usual = matrices(&usual_modules(), |_| 2);
    let plain = merged(&json!({}), &usual);
    for targets in [
        json!(["self_attn.q_proj", "self_attn.v_proj"]),
        json!([
            "v_proj",
            "layers.0.self_attn.q_proj",
            "layers.1.self_attn.q_proj",
            "layers.2.self_attn.q_proj"
        ]),
        json!(usual_modules()),
        json!(["q_proj", "v_proj", "query_key_value"]),
        json!("(?:.*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)"),
        json!(r"model\.layers\.\d+\.self_attn\.(q|v)_proj"),
        json!(r".*(?<!k_proj)(?<!o_proj)"),
        json!(null),
    ] {
        assert_eq!(merged(&json!({"target_modules": targets}), &usual), plain, "{targets}");
    }
    let excluded =
        json!({"target_modules": ["q_proj", "v_proj", "k_proj"], "exclude_modules": ["k_proj"]});
    assert_eq!(merged(&excluded, &usual), plain);
    let excluded =
        json!({"target_modules": ["q_proj", "v_proj", "k_proj"], "exclude_modules": ".*k_proj"});
    assert_eq!(merged(&excluded, &usual), plain);

    let second: Vec<String> =
        usual_modules().into_iter().filter(|module| module.contains(".1.")).collect();
    let only_second = matrices(&second, |_| 2);
    let found =
        merged(&json!({"layers_to_transform": [1], "layers_pattern": "layers"}), &only_second);
    assert_eq!(found, merged(&json!({"layers_to_transform": 1}), &only_second));
    let base = tensors(&Checkpoint::open(&fixture("llama")).unwrap());
    for ((name, found), (_, base)) in found.iter().zip(&base) {
        let is_adapted = second.iter().any(|module| name.starts_with(module.as_str()));
        assert_eq!(found != base, is_adapted, "{name}");
    }
    let all: Vec<String> = (base.iter())
        .filter_map(|(name, _)| name.strip_suffix(".weight"))
        .filter(|module| module.ends_with("k_proj") || module.ends_with("v_proj"))
        .map(String::from)
        .collect();
    refused(
        &json!({"target_modules": "all-linear"}),
        &matrices(&all, |_| 2),
        "there is no adapter of",
    );
    refused(&json!({"target_modules": []}), &usual, "`target_modules` must be names of modules");
    refused(&json!({"target_modules": ["q_proj"]}), &usual, "has a place for 6");
    refused(&json!({"layers_to_transform": "one"}), &usual, "`layers_to_transform`");
    refused(&json!({"layers_to_transform": [1]}), &usual, "has a place for 4");
    refused(&json!({}), &only_second, "there is no adapter of `model.layers.0.self_attn.q_proj`");
}

#[test]
fn names_that_wrappers_changed_are_found() {
    let usual = matrices(&usual_modules(), |_| 2);
    let plain = merged(&json!({}), &usual);
    let renamed = |from: &str, to: &str| {
        let rename = |(name, shape, values): &(String, Vec<usize>, Vec<f32>)| {
            (name.replace(from, to), shape.clone(), values.clone())
        };
        usual.iter().map(rename).collect::<Vec<_>>()
    };
    for (from, to) in [
        (".weight", ".default.weight"),
        ("base_model.model.model.", "base_model.model."),
        ("base_model.model.model.", "model."),
        ("base_model.model.", "base_model.model._orig_mod."),
        ("base_model.", "module.base_model."),
        ("model.layers", "model.language_model.layers"),
        (".self_attn", "._checkpoint_wrapped_module.self_attn"),
    ] {
        assert_eq!(merged(&json!({}), &renamed(from, to)), plain, "{to}");
    }
    let mut two = renamed(".weight", ".other.weight");
    two.extend(usual.clone());
    refused(&json!({}), &two, "holds the same matrix as");
}

#[test]
fn ranks_and_scales_of_single_modules_count() {
    let modules = usual_modules();
    let rank = |module: &str| if module.ends_with("v_proj") { 4 } else { 2 };
    let mixed = matrices(&modules, rank);
    let changes = json!({"rank_pattern": {"v_proj": 4}, "alpha_pattern": {r"layers\.\d+\.self_attn\.v_proj": 2.0}});
    let found = merged(&changes, &mixed);
    // alpha / rank is 4 for queries and 1/2 for values
    let base = Checkpoint::open(&fixture("llama")).unwrap();
    for (name, tensor) in found {
        let before = base.tensor(&name).unwrap();
        let Some(module) =
            name.strip_suffix(".weight").filter(|module| modules.iter().any(|of| of == module))
        else {
            assert_eq!(tensor, before, "{name}");
            continue;
        };
        let of = |matrix: &str| {
            let name = format!("base_model.model.{module}.{matrix}.weight");
            &mixed.iter().find(|(other, _, _)| *other == name).unwrap().2
        };
        let (a, b, rank) = (of("lora_A"), of("lora_B"), rank(module));
        let scale = if module.ends_with("v_proj") { 0.5 } else { 4.0 };
        for (index, (after, before)) in tensor.values.iter().zip(&before.values).enumerate() {
            let (row, column) = (index / 64, index % 64);
            let product: f32 = (0..rank).map(|k| b[row * rank + k] * a[k * 64 + column]).sum();
            assert!((after - before - scale * product).abs() < 1e-4, "{name}: {after} {before}");
        }
    }
    refused(&json!({}), &mixed, "has the shape [4, 64]; [2, 64] was expected");
    refused(&json!({"rank_pattern": {"v_proj": 0}}), &mixed, "in `rank_pattern`");
    refused(&json!({"alpha_pattern": {"v_proj": "high"}}), &mixed, "in `alpha_pattern`");
    refused(
        &json!({"rank_pattern": {"(": 4}}),
        &mixed,
        "neither a module nor a regular expression",
    );
    // a file of 20 KB whose expressions would take gigabytes
    refused(
        &json!({"rank_pattern": {r"\w{400}": 4}}),
        &mixed,
        "neither a module nor a regular expression",
    );
    let many: Value = (0..2001).map(|number| (format!("a{number}"), json!(4))).collect();
    refused(&json!({"alpha_pattern": many}), &mixed, "names 2001 modules");
    refused(&json!({"lora_alpha": 0}), &mixed, "`lora_alpha` must be a number above 0");

    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &changes, &mixed);
    let opened = Checkpoint::open(directory.path()).unwrap();
    let error = opened.adapters().unwrap().settings(opened.tensor_names()).unwrap_err();
    assert!(error.to_string().contains("cannot be trained further"), "{error}");
    write(directory.path(), &json!({}), &matrices(&modules, |_| 2));
    let opened = Checkpoint::open(directory.path()).unwrap();
    let settings = opened.adapters().unwrap().settings(opened.tensor_names()).unwrap();
    assert_eq!((settings.rank, settings.alpha), (2, 8.0));
    assert_eq!(settings.target_modules, ["q_proj", "v_proj"]);
}

#[test]
fn whole_weights_take_the_place_of_the_models() {
    let base = Checkpoint::open(&fixture("llama")).unwrap();
    let norm = base.tensor("model.norm.weight").unwrap();
    let doubled: Vec<f32> = norm.values.iter().map(|value| 2.0 * value).collect();
    let mut parts = matrices(&usual_modules(), |_| 2);
    parts.push(("base_model.model.model.norm.weight".into(), norm.shape, doubled.clone()));
    let with_norm = merged(&json!({"modules_to_save": ["norm"]}), &parts);
    let (_, found) = with_norm.iter().find(|(name, _)| name == "model.norm.weight").unwrap();
    assert_eq!(found.values, doubled);
    refused(&json!({"modules_to_save": ["lm_head"]}), &parts, "`modules_to_save` names `lm_head`");
    parts.last_mut().unwrap().1 = vec![32, 2];
    refused(&json!({"modules_to_save": ["norm"]}), &parts, "has the shape Some([32, 2])");

    let mut head = usual_modules();
    head.push("lm_head".into());
    let adapted = merged(
        &json!({"target_modules": ["q_proj", "v_proj", "lm_head"]}),
        &matrices(&head, |_| 2),
    );
    let (_, found) = adapted.iter().find(|(name, _)| name == "lm_head.weight").unwrap();
    assert_ne!(*found, base.tensor("lm_head.weight").unwrap());
}

#[test]
fn a_directory_without_adapters_says_what_it_holds() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    write(path, &json!({}), &[]);
    fs_err::remove_file(path.join("adapter_model.safetensors")).unwrap();
    fs_err::write(path.join("training_args.bin"), "pickled").unwrap();
    assert!(refusal(path).contains("holds no adapter_model.safetensors"), "{}", refusal(path));
    fs_err::write(path.join("adapter_model.bin"), "pickled").unwrap();
    let error = refusal(path);
    assert!(error.contains("pickled weights (adapter_model.bin)"), "{error}");
    assert!(error.contains("load them with peft and save_pretrained()"), "{error}");
    fs_err::write(path.join("model.safetensors"), "").unwrap();
    let error = refusal(path);
    assert!(error.contains("[remove adapter_config.json to use the whole model"), "{error}");
    for (config, expected) in [
        (json!(null), "is not a JSON object"),
        (json!([]), "is not a JSON object"),
        (json!({}), "`base_model_name_or_path` must be a model's name or path; it is nothing"),
        (json!({"base_model_name_or_path": null}), "it is null [write the path of the model"),
    ] {
        write_json(&path.join("adapter_config.json"), &config);
        let error = refusal(path);
        assert!(error.contains(expected), "{error}");
    }
}

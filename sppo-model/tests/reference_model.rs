//! The whole model on the reference op set: golden numbers, and what models refuse.

use std::cell::Cell;
use std::path::Path;

use serde_json::json;
use sppo_core::stages::{self, TokenizationRule, TokenizationSettings};
use sppo_model::decoder::{DecoderConfig, FAMILIES, NormPlacement, QueryKeyNorm, tensor_layout};
use sppo_model::formats::AdapterValues;
use sppo_model::golden::{check_model, check_ranker, load_tiny, load_tiny_adapted};
use sppo_model::ops::Ops;
use sppo_model::ops::reference::ReferenceOps;
use sppo_model::serve::DecoderPolicy;
use sppo_model::{DecoderModel, GenerationLimits, ModelError};
use sppo_plugin::{
    Codec, FinishReason, GenerationPrompt, GenerationRequest, Learner, LoraSettings, Message,
    Optimizer, PolicySpec, Progress, SamplingParameters, SequenceBatch, SilentHost, StepSettings,
};

fn model() -> DecoderModel<ReferenceOps> {
    load_tiny(ReferenceOps, "llama").unwrap()
}

fn policy(family: &str) -> DecoderPolicy<ReferenceOps> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/lm");
    let path = fixtures.join(family);
    DecoderPolicy::load(ReferenceOps, &PolicySpec::new(path), GenerationLimits::default()).unwrap()
}

fn request(lengths: &[usize], sampling: SamplingParameters) -> GenerationRequest {
    let prompt = |(id, &length): (usize, &usize)| GenerationPrompt {
        id: id as u64,
        tokens: (0..length as u32).map(|place| place % 500).collect(),
    };
    let prompts = lengths.iter().enumerate().map(prompt).collect();
    GenerationRequest { prompts, samples_per_prompt: 2, sampling, seed: 5, stream: 0 }
}

fn pair() -> SequenceBatch {
    let mut batch = SequenceBatch::new();
    let prompt = batch.push_prompt(&[1, 2, 3]);
    batch.push_response(prompt, &[4, 5]);
    batch
}

#[test]
fn the_reference_model_holds_the_golden_numbers() {
    assert_eq!(check_model(&|| Ok(ReferenceOps)), Vec::<String>::new());
}

#[test]
fn the_reference_ranker_holds_the_golden_numbers() {
    assert_eq!(check_ranker(&|| Ok(ReferenceOps)), Vec::<String>::new());
}

#[test]
fn responses_end_at_end_tokens_the_length_and_the_context() {
    let sampling = SamplingParameters { max_new_tokens: 10, ..Default::default() };
    let ends: Vec<u32> = (0..512).step_by(5).collect();
    let responses =
        model().generate(&request(&[3, 249, 20], sampling.clone()), &ends, &SilentHost).unwrap();
    for (index, response) in responses.iter().enumerate() {
        let room = if index / 2 == 1 { 7 } else { 10 };
        let (last, before) = response.tokens.split_last().unwrap();
        assert!(before.iter().all(|token| !ends.contains(token)));
        match response.finish_reason {
            FinishReason::Stop => assert!(ends.contains(last)),
            FinishReason::Length => assert_eq!(response.tokens.len(), room),
        }
        assert_eq!(response.tokens.len(), response.log_probs.len());
    }
    let never = model().generate(&request(&[3, 249], sampling), &[], &SilentHost).unwrap();
    let lengths: Vec<usize> = never.iter().map(|response| response.tokens.len()).collect();
    assert_eq!(lengths, [10, 10, 7, 7]);
    let all: Vec<u32> = (0..511).collect();
    let at_least = SamplingParameters { min_new_tokens: 4, ..Default::default() };
    for response in model().generate(&request(&[3], at_least), &all, &SilentHost).unwrap() {
        assert_eq!(response.tokens[..4], [511; 4]);
    }
}

#[test]
fn a_cache_for_a_single_row_gives_the_same_responses() {
    let sampling = SamplingParameters { max_new_tokens: 6, ..Default::default() };
    let request = request(&[9, 2, 30, 1, 1, 17], sampling);
    let expected = model().generate(&request, &[7], &SilentHost).unwrap();
    let limits = GenerationLimits { cache_bytes: 0, ..Default::default() };
    let actual = model().with_generation_limits(limits).generate(&request, &[7], &SilentHost);
    assert_eq!(actual.unwrap(), expected);
}

#[test]
fn a_cache_of_a_few_pages_gives_the_same_responses() {
    let sampling = SamplingParameters { max_new_tokens: 200, ..Default::default() };
    let request = request(&[9, 2, 30, 1, 1, 17], sampling);
    let ends = [7, 100, 300];
    let expected = model().generate(&request, &ends, &SilentHost).unwrap();
    let lengths: Vec<usize> = expected.iter().map(|response| response.tokens.len()).collect();
    assert!(lengths.iter().any(|length| *length > 130), "{lengths:?}");
    // Keys and values of three layers, of two heads of 16 numbers each.
    let slot = 2 * 3 * 2 * 16 * 4;
    for slots in [300, 350, 420, 500, 700, 1000] {
        let limits = GenerationLimits { cache_bytes: slots * slot, ..Default::default() };
        let actual = model().with_generation_limits(limits).generate(&request, &ends, &SilentHost);
        assert_eq!(actual.unwrap(), expected, "{slots} slots");
    }
}

#[test]
fn prompts_that_cannot_be_continued_are_named() {
    let error = |lengths: &[usize]| {
        let sampling = SamplingParameters::default();
        model().generate(&request(lengths, sampling), &[], &SilentHost).unwrap_err().to_string()
    };
    assert!(error(&[3, 256]).contains("prompt 1 is 256 tokens long"));
    assert!(error(&[3, 3, 0]).contains("prompt 2 has no tokens"));
}

/// A host whose user presses Ctrl-C after a few reports of progress.
struct Impatient(Cell<u64>);

impl Progress for Impatient {
    fn is_cancelled(&self) -> bool {
        self.0.get() >= 3
    }

    fn progress(&self, completed: u64, total: u64) {
        assert!(completed > 0 && completed <= total);
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn generation_stops_on_request() {
    let host = Impatient(Cell::new(0));
    let request = request(&[3], SamplingParameters::default());
    let error = model().generate(&request, &[], &host).unwrap_err();
    assert!(matches!(error, ModelError::Cancelled));
    assert_eq!(host.0.get(), 3);
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let mut model = model();
    model.begin_training(&Optimizer::default()).unwrap();
    let before: Vec<_> = model.tensors().map(Result::unwrap).collect();
    model.forward(&pair()).unwrap();
    model.backward(&[f64::INFINITY]).unwrap();
    let settings = StepSettings { learning_rate: 0.1, max_gradient_norm: None };
    let error = model.step(&settings).unwrap_err().to_string();
    assert!(error.contains("is not finite"), "{error}");
    let after: Vec<_> = model.tensors().map(Result::unwrap).collect();
    assert_eq!(before, after);
    assert_eq!(model.token_log_probs(&pair()).unwrap()[0].len(), 2);
}

#[test]
fn training_calls_out_of_order_are_refused() {
    let mut model = model();
    let settings = StepSettings { learning_rate: 0.1, max_gradient_norm: None };
    assert!(model.step(&settings).is_err());
    assert!(model.backward(&[1.0]).is_err());
    model.forward(&pair()).unwrap();
    assert!(model.backward(&[1.0, 2.0]).is_err());
    assert_eq!(model.forward(&SequenceBatch::new()).unwrap(), Vec::<f64>::new());
    model.backward(&[]).unwrap();
}

#[test]
fn clipping_scales_the_gradient_and_reports_the_full_norm() {
    let update = |maximum| {
        let mut model = model();
        model.begin_training(&Optimizer::Sgd { momentum: 0.0 }).unwrap();
        let before: Vec<_> = model.tensors().map(|tensor| tensor.unwrap().2).collect();
        model.forward(&pair()).unwrap();
        model.backward(&[1.0]).unwrap();
        let settings = StepSettings { learning_rate: 1.0, max_gradient_norm: maximum };
        let norm = model.step(&settings).unwrap().gradient_norm;
        let after: Vec<_> = model.tensors().map(|tensor| tensor.unwrap().2).collect();
        let moved: f64 = (before.concat().iter().zip(after.concat()))
            .map(|(before, after)| f64::from(before - after).powi(2))
            .sum();
        (norm, moved.sqrt())
    };
    let (norm, moved) = update(None);
    assert!((moved / norm - 1.0).abs() < 1e-4);
    let (clipped_norm, clipped_moved) = update(Some(0.5));
    assert_eq!(clipped_norm, norm);
    assert!((clipped_moved - 0.5).abs() < 1e-4, "{clipped_moved}");
}

#[test]
fn optimizer_state_of_another_run_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state.safetensors");
    let mut model = model();
    assert!(model.save_optimizer_state(&file).is_err());
    model.begin_training(&Optimizer::default()).unwrap();
    model.save_optimizer_state(&file).unwrap();
    model.load_optimizer_state(&file).unwrap();
    model.begin_training(&Optimizer::Sgd { momentum: 0.9 }).unwrap();
    let error = model.load_optimizer_state(&file).unwrap_err().to_string();
    assert!(error.contains("RmsProp") && error.contains("Sgd"), "{error}");
    std::fs::write(&file, b"not a safetensors file").unwrap();
    assert!(model.load_optimizer_state(&file).is_err());
    assert!(model.load_optimizer_state(&directory.path().join("absent")).is_err());
}

fn lora(dropout: f64) -> LoraSettings {
    LoraSettings {
        rank: 2,
        alpha: 4.0,
        dropout,
        target_modules: ["q_proj", "down_proj"].map(String::from).to_vec(),
        rank_stabilized: true,
        seed: 1,
    }
}

/// A tiny Qwen 2 whose adapter of one module has something added to one number of `A` or of `B`.
fn adapted(dropout: f64, changed: Option<(usize, usize, f32)>) -> DecoderModel<ReferenceOps> {
    let source = &mut |module: &str, [output, input]: [usize; 2]| {
        let wave = |count: usize| (0..count).map(|place| 0.2 * (place as f32).cos()).collect();
        let mut values = AdapterValues { a: wave(2 * input), b: wave(output * 2) };
        if let Some((matrix, place, change)) = changed
            && module == "model.layers.1.mlp.down_proj"
        {
            [&mut values.a, &mut values.b][matrix][place] += change;
        }
        Ok(Some(values))
    };
    load_tiny_adapted(ReferenceOps, "qwen2", &lora(dropout), source).unwrap()
}

#[test]
fn gradients_of_adapters_are_slopes_with_and_without_dropout() {
    for dropout in [0.0, 0.4] {
        let mut model = adapted(dropout, None);
        model.forward(&pair()).unwrap();
        model.backward(&[1.0]).unwrap();
        for (matrix, name) in ["lora_A", "lora_B"].into_iter().enumerate() {
            let name = format!("model.layers.1.mlp.down_proj.{name}.weight");
            let entry = model.parameters().entries().iter().find(|entry| entry.name == name);
            let gradient = model.ops().parameter_gradient(&entry.unwrap().value).unwrap().unwrap();
            for place in [0, 7, 50] {
                let step = 1.0 / 256.0;
                let log_prob = |change| {
                    adapted(dropout, Some((matrix, place, change))).forward(&pair()).unwrap()[0]
                };
                let slope = (log_prob(step) - log_prob(-step)) / (2.0 * f64::from(step));
                let found = f64::from(gradient[place]);
                let off = (found - slope).abs();
                assert!(off < 2e-3 * slope.abs() + 2e-4, "{name} {place}: {found} {slope}");
            }
        }
    }
}

#[test]
fn dropout_is_drawn_anew_in_every_pass_and_the_same_after_resuming() {
    let mut model = adapted(0.4, None);
    model.begin_training(&Optimizer::default()).unwrap();
    let passes: Vec<f64> = (0..2).map(|_| model.forward(&pair()).unwrap()[0]).collect();
    assert_ne!(passes[0], passes[1]);
    let mut again = adapted(0.4, None);
    again.begin_training(&Optimizer::default()).unwrap();
    assert_eq!(again.forward(&pair()).unwrap()[0], passes[0]);
    let scored = model.token_log_probs(&pair()).unwrap();
    assert_eq!(scored, adapted(0.0, None).token_log_probs(&pair()).unwrap());
}

#[test]
fn adapters_are_trained_by_every_optimizer_and_nothing_else_is() {
    for optimizer in [
        Optimizer::default(),
        Optimizer::AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.01 },
        Optimizer::Sgd { momentum: 0.9 },
    ] {
        let mut model = adapted(0.0, None);
        let base = model.token_log_probs_without_adapters(&pair()).unwrap();
        model.begin_training(&optimizer).unwrap();
        let before = model.forward(&pair()).unwrap()[0];
        model.backward(&[-1.0]).unwrap();
        let settings = StepSettings { learning_rate: 1e-4, max_gradient_norm: None };
        model.step(&settings).unwrap();
        assert!(model.forward(&pair()).unwrap()[0] > before, "{optimizer:?}");
        assert_eq!(model.token_log_probs_without_adapters(&pair()).unwrap(), base);
    }
}

#[test]
fn an_expert_without_rows_has_a_gradient_of_zero_and_training_goes_on() {
    let mut model = load_tiny(ReferenceOps, "qwen3_moe").unwrap();
    model.begin_training(&Optimizer::default()).unwrap();
    let first = model.forward(&pair()).unwrap()[0];
    model.backward(&[-1.0]).unwrap();
    let (mut idle, mut busy) = (0, 0);
    for entry in model.parameters().entries() {
        let gradient = model.ops().parameter_gradient(&entry.value).unwrap().unwrap();
        let is_zero = gradient.iter().all(|&value| value == 0.0);
        match entry.name.contains(".experts.") {
            true if is_zero => idle += 1,
            true => busy += 1,
            false => assert!(!is_zero, "{}", entry.name),
        }
    }
    // 4 rows with 2 of 8 experts each: some experts are not chosen
    assert!(idle > 0 && busy > 0, "{idle} {busy}");
    let settings = StepSettings { learning_rate: 1e-3, max_gradient_norm: None };
    for step in 0..20 {
        if step > 0 {
            model.forward(&pair()).unwrap();
            model.backward(&[-1.0]).unwrap();
        }
        model.step(&settings).unwrap();
    }
    let last = model.forward(&pair()).unwrap()[0];
    assert!(last > first + 1.0, "{first} {last}");
}

#[test]
fn adapters_of_fused_matrices_are_those_of_peft() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/lm/phi3");
    let load = |path: &Path, target_modules: &[&str]| {
        let target_modules = target_modules.iter().map(|name| name.to_string()).collect();
        let adapters = LoraSettings { target_modules, ..lora(0.0) };
        let spec = PolicySpec { adapters: Some(adapters), ..PolicySpec::new(path.to_path_buf()) };
        DecoderPolicy::load(ReferenceOps, &spec, GenerationLimits::default())
    };
    let mut policy = load(&path, &["q_proj", "k_proj", "v_proj", "down_proj"]).unwrap();
    policy.begin_training(&Optimizer::default()).unwrap();
    for _ in 0..2 {
        policy.forward(&pair()).unwrap();
        policy.backward(&[-1.0]).unwrap();
        let step = StepSettings { learning_rate: 0.01, max_gradient_norm: None };
        policy.step(&step).unwrap();
    }
    let trained = policy.token_log_probs(&pair()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let saved = directory.path().join("adapters");
    policy.save(&saved).unwrap();
    let bytes = std::fs::read(saved.join("adapter_model.safetensors")).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let module = "base_model.model.model.layers.0.self_attn.qkv_proj";
    let shape =
        |name: &str| stored.tensor(&format!("{module}.{name}.weight")).unwrap().shape().to_vec();
    assert_eq!((shape("lora_A"), shape("lora_B")), (vec![2, 64], vec![128, 2]));
    assert_eq!(stored.len(), 4 * 2 * 2);

    let mut again = load(&saved, &["qkv_proj", "down_proj"]).unwrap();
    assert_eq!(again.token_log_probs(&pair()).unwrap(), trained);
    let spec = PolicySpec::new(saved);
    let merged = DecoderPolicy::load(ReferenceOps, &spec, GenerationLimits::default());
    let merged = merged.unwrap().token_log_probs(&pair()).unwrap();
    for (merged, trained) in merged.concat().into_iter().zip(trained.concat()) {
        assert!((merged - trained).abs() < 1e-5, "{merged} {trained}");
    }
    // in a model that sees images, the language model's layers have longer names
    let outer = directory.path().join("outer");
    std::fs::create_dir(&outer).unwrap();
    for entry in std::fs::read_dir(path.with_file_name("gemma3_text")).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, outer.join(file.file_name().unwrap())).unwrap();
    }
    let text: serde_json::Value =
        serde_json::from_slice(&std::fs::read(outer.join("config.json")).unwrap()).unwrap();
    let config = json!({"model_type": "gemma3", "text_config": text});
    std::fs::write(outer.join("config.json"), config.to_string()).unwrap();
    let mut policy = load(&outer, &["o_proj"]).unwrap();
    let saved = directory.path().join("adapters-of-outer");
    policy.save(&saved).unwrap();
    let bytes = std::fs::read(saved.join("adapter_model.safetensors")).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let module = "base_model.model.model.language_model.layers.0.self_attn.o_proj";
    assert!(stored.tensor(&format!("{module}.lora_B.weight")).is_ok());
    let mut again = load(&saved, &["o_proj"]).unwrap();
    assert_eq!(again.token_log_probs(&pair()).unwrap(), policy.token_log_probs(&pair()).unwrap());

    let error = |targets: &[&str]| load(&path, targets).map(|_| ()).unwrap_err().to_string();
    assert!(
        error(&["q_proj", "v_proj"]).contains("q_proj, k_proj, v_proj are one matrix, `qkv_proj`")
    );
    let llama = path.with_file_name("llama");
    let refused = load(&llama, &["qkv_proj"]).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("no target module `qkv_proj` in this model"), "{refused}");
}

/// A tiny model of random weights with norms in other places than any known family has, in which one
/// number of one weight may be changed.
fn rearranged(
    placement: NormPlacement,
    norm: QueryKeyNorm,
    changed: Option<(&str, f32)>,
) -> DecoderModel<ReferenceOps> {
    let json = json!({
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "vocab_size": 11,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    });
    let config = DecoderConfig::from_hugging_face(&json, Path::new("config.json")).unwrap();
    let config = DecoderConfig { norm_placement: placement, query_key_norm: norm, ..config };
    let layout = tensor_layout(&config);
    let weight = &mut |name: &str| {
        let index = layout.iter().position(|tensor| tensor.name == name).unwrap();
        let shape = layout[index].shape.clone();
        let wave = |place: usize| (1.3 * (index * 97 + place) as f32).sin();
        let level = if shape.len() == 1 { 1.0 } else { 0.0 };
        let count = shape.iter().product::<usize>();
        let mut values: Vec<f32> = (0..count).map(|place| level + 0.3 * wave(place)).collect();
        if let Some((_, change)) = changed.filter(|(changed, _)| *changed == name) {
            values[3] += change;
        }
        Ok((shape, values))
    };
    DecoderModel::load(ReferenceOps, &config, weight).unwrap()
}

#[test]
fn gradients_are_slopes_wherever_the_norms_stand() {
    let layer = ["self_attn.q_norm", "self_attn.k_norm", "post_attention_layernorm"];
    let after = [&layer[..], &["post_feedforward_layernorm", "mlp.down_proj"]].concat();
    let before = [&layer[..], &["input_layernorm", "mlp.down_proj"]].concat();
    for (placement, norm, modules) in [
        (NormPlacement::After, QueryKeyNorm::AcrossHeads, &after),
        (NormPlacement::BeforeAndAfter, QueryKeyNorm::AcrossHeads, &after),
        (NormPlacement::Before, QueryKeyNorm::PerHead, &before),
    ] {
        let mut model = rearranged(placement, norm, None);
        model.forward(&pair()).unwrap();
        model.backward(&[1.0]).unwrap();
        for module in modules {
            let name = format!("model.layers.0.{module}.weight");
            let entry = model.parameters().entries().iter().find(|entry| entry.name == name);
            let gradient = model.ops().parameter_gradient(&entry.unwrap().value).unwrap().unwrap();
            let step = 1.0 / 256.0;
            let log_prob = |change| {
                let mut model = rearranged(placement, norm, Some((&name, change)));
                model.forward(&pair()).unwrap()[0]
            };
            let slope = (log_prob(step) - log_prob(-step)) / (2.0 * f64::from(step));
            let found = f64::from(gradient[3]);
            let off = (found - slope).abs();
            assert!(off < 2e-3 * slope.abs() + 2e-4, "{placement:?} {name}: {found} {slope}");
        }
    }
    let across = rearranged(NormPlacement::After, QueryKeyNorm::AcrossHeads, None);
    let shapes: Vec<_> = across.parameters().entries()[1..12]
        .iter()
        .map(|entry| (entry.name.trim_start_matches("model.layers.0."), &entry.shape[..]))
        .filter(|(name, _)| name.contains("norm"))
        .collect();
    assert_eq!(
        shapes,
        [
            ("self_attn.q_norm.weight", &[16][..]),
            ("self_attn.k_norm.weight", &[8]),
            ("post_attention_layernorm.weight", &[16]),
            ("post_feedforward_layernorm.weight", &[16]),
        ]
    );
}

#[test]
fn weights_that_diverged_are_not_saved() {
    let mut policy = policy("llama");
    policy.begin_training(&Optimizer::RmsProp { alpha: 0.99, epsilon: 1e-8 }).unwrap();
    policy.forward(&pair()).unwrap();
    policy.backward(&[1.0]).unwrap();
    let step = StepSettings { learning_rate: 1e38, max_gradient_norm: None };
    policy.step(&step).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let error = policy.save(&directory.path().join("model")).unwrap_err();
    assert!(error.message.contains("training has diverged"), "{}", error.message);
    assert!(error.hint.unwrap().contains("training.learning_rate"));
}

#[test]
fn an_answer_s_tokens_are_those_that_it_has_in_the_conversation() {
    let settings = TokenizationSettings {
        rule: TokenizationRule::Clean,
        max_length: 256,
        max_prompt_length: 256,
    };
    for family in FAMILIES.iter().map(|family| family.model_type()) {
        let policy = policy(family);
        let messages = [Message::user("What is the sky?")];
        let answer = "The sky is blue.";
        let tokenized =
            stages::tokenize_responses(&policy, &messages, &[answer], settings).unwrap().remove(0);
        let conversation = [messages[0].clone(), Message::assistant(answer)];
        let whole = policy.render(&conversation, false).unwrap();
        let whole = policy.encode(&whole, false).unwrap();
        let ours = [tokenized.prompt, tokenized.response].concat();
        // Templates add line breaks after the end token.
        let beginning = usize::from(ours[0] != whole[0]);
        assert!(whole.starts_with(&ours[beginning..]), "{family}: {ours:?}, {whole:?}");
    }
}

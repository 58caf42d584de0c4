//! Memory stays where it is, however long one trains.
#![cfg(all(feature = "libtorch", target_os = "linux"))]

use std::path::PathBuf;

use serde_json::json;
use sppo_backend_tch as _;
use sppo_plugin::{
    GenerationPrompt, GenerationRequest, Optimizer, PolicySpec, SamplingParameters, SequenceBatch,
    SilentHost, StepSettings, create_backend,
};

const STEPS: u32 = 200;
/// Until buffers of all sizes are there.
const WARM_UP: u32 = 50;
const GROWTH_MEBIBYTES: f64 = 8.0;

fn resident_mebibytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

#[test]
fn memory_does_not_grow_over_two_hundred_steps() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/lm/llama");
    let backend = create_backend("tch", json!({"device": "cpu", "threads": 1})).unwrap();
    let mut policy = backend.load_policy(&PolicySpec::new(path)).unwrap();
    policy.begin_training(&Optimizer::default()).unwrap();
    let mut warm = 0.0;
    for step in 0..STEPS {
        if step == WARM_UP {
            warm = resident_mebibytes();
        }
        let mut batch = SequenceBatch::new();
        let prompt = batch.push_prompt(&[1, 5, 9]);
        for response in 0..4 {
            // From 16 to 112 tokens, other lengths at every step.
            let length = 16 + (37 * step + 29 * response) % 97;
            let tokens: Vec<u32> = (0..length).map(|token| (step + 7 * token) % 512).collect();
            batch.push_response(prompt, &tokens);
        }
        policy.token_log_probs(&batch).unwrap();
        policy.forward(&batch).unwrap();
        policy.backward(&[1.0, -1.0, 0.5, -0.5]).unwrap();
        policy.step(&StepSettings { learning_rate: 1e-5, max_gradient_norm: Some(1.0) }).unwrap();
        let request = GenerationRequest {
            prompts: vec![GenerationPrompt { id: 0, tokens: vec![1, 5, 9] }],
            samples_per_prompt: 2,
            sampling: SamplingParameters {
                max_new_tokens: 1 + step as usize % 13,
                ..SamplingParameters::default()
            },
            seed: u64::from(step),
            stream: 0,
        };
        policy.generate(&request, &SilentHost).unwrap();
    }
    let growth = resident_mebibytes() - warm;
    println!("{growth:.2} MiB more than after {WARM_UP} steps, {warm:.0} MiB");
    assert!(growth < GROWTH_MEBIBYTES, "{growth:.2} MiB more than after {WARM_UP} steps");
}

//! The backend through the plugin interface, from its library.
#![cfg(feature = "libtorch")]

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::PathBuf;

use serde_json::json;
use sppo_backend_tch as _;
use sppo_core::plugins::PluginRegistry;
use sppo_core::plugins::PluginSearch;
use sppo_plugin::{
    Backend, Optimizer, Policy, PolicySpec, SequenceBatch, StepSettings, create_backend,
};

fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().join(format!("{DLL_PREFIX}sppo_backend_tch{DLL_SUFFIX}"))
}

fn settings() -> serde_json::Value {
    json!({"device": "cpu", "threads": 1})
}

fn policy_on(backend: &dyn Backend) -> Box<dyn Policy> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/lm/llama");
    backend.load_policy(&PolicySpec::new(path)).unwrap()
}

/// Log-probabilities after a step of training.
fn trained(policy: &mut dyn Policy) -> Vec<Vec<f32>> {
    let mut batch = SequenceBatch::new();
    let prompt = batch.push_prompt(&[1, 5, 9]);
    batch.push_response(prompt, &[7, 3, 8, 100]);
    batch.push_response(prompt, &[200, 300]);
    policy.begin_training(&Optimizer::default()).unwrap();
    policy.forward(&batch).unwrap();
    policy.backward(&[1.0, -1.0]).unwrap();
    policy.step(&StepSettings { learning_rate: 1e-4, max_gradient_norm: None }).unwrap();
    policy.token_log_probs(&batch).unwrap()
}

#[test]
fn several_loads_in_one_process_compute_side_by_side() {
    let directory = tempfile::tempdir().unwrap();
    let mut backends = vec![create_backend("tch", settings()).unwrap()];
    for name in ["one", "another"] {
        let copy = directory.path().join(format!("{DLL_PREFIX}{name}{DLL_SUFFIX}"));
        std::fs::copy(library(), &copy).unwrap();
        let table = PluginSearch { files: vec![copy], ..PluginSearch::default() };
        let plugins = PluginRegistry::discover(&table).unwrap();
        backends.push(plugins.create_backend("tch", settings()).unwrap());
        assert!(plugins.used()[0].sha256.is_some(), "the built-in one was taken");
    }
    let mut policies: Vec<_> = backends.iter().map(|backend| policy_on(backend.as_ref())).collect();
    let results: Vec<_> = policies.iter_mut().map(|policy| trained(policy.as_mut())).collect();
    assert!(results[0][0][0] < 0.0);
    assert!(results.iter().all(|result| *result == results[0]), "{results:?}");
}

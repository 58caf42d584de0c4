//! The checks that every op set must pass: each op against the reference op set, and a whole model
//! against transformers and PyTorch.

use sppo_backend_burn::{BurnOps, choose_device};
use sppo_model::golden::{check_model, check_preferring_models, check_ranker, check_reward_models};
use sppo_model::ops::conformance::check_ops;
use sppo_model::ops::encoder_conformance::check_encoder_ops;

const NONE: [String; 0] = [];

/// On the CPU, or on the device that SPPO_BURN_TEST_DEVICE names.
fn ops(keep_logits_limit: usize) -> BurnOps {
    let device = std::env::var("SPPO_BURN_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    BurnOps::new(choose_device(&device).unwrap(), keep_logits_limit)
}

#[test]
fn ops_agree_with_the_reference() {
    let ops = ops(512 << 20);
    assert_eq!(check_ops(&ops, 1e-5), NONE);
    assert_eq!(check_encoder_ops(&ops, 1e-5), NONE);
}

#[test]
fn a_model_agrees_with_transformers_and_pytorch_keeping_logits_or_not() {
    for keep_logits_limit in [0, 512 << 20] {
        assert_eq!(check_model(&|| Ok(ops(keep_logits_limit))), NONE);
    }
}

#[test]
fn a_ranker_agrees_with_llm_blender() {
    assert_eq!(check_ranker(&|| Ok(ops(0))), NONE);
}

#[test]
fn reward_models_agree_with_transformers() {
    assert_eq!(check_reward_models(&|| Ok(ops(0))), NONE);
}

#[test]
fn general_preference_models_and_judges_agree_with_transformers() {
    assert_eq!(check_preferring_models(&|| Ok(ops(0))), NONE);
}

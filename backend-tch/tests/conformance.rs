//! The checks that every op set must pass: each op against the reference op set, and a whole model
//! against transformers and PyTorch.
#![cfg(feature = "libtorch")]

use sppo_backend_tch::{TchOps, TchOptions, choose_device};
use sppo_model::Result;
use sppo_model::golden::{
    check_model, check_preferring_models, check_quantized_weights, check_ranker,
    check_reward_models,
};
use sppo_model::ops::conformance::check_ops;
use sppo_model::ops::encoder_conformance::check_encoder_ops;
use tch::Kind;

const NONE: [String; 0] = [];

/// On the CPU, or on the device that SPPO_TCH_TEST_DEVICE names.
fn ops(compute_dtype: Kind, keep_logits_limit: usize) -> Result<TchOps> {
    let device = std::env::var("SPPO_TCH_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    let device = choose_device(&device, None).unwrap();
    TchOps::new(&TchOptions { device, compute_dtype, threads: 2, keep_logits_limit })
}

#[test]
fn ops_agree_with_the_reference() {
    let ops = ops(Kind::Float, 512 << 20).unwrap();
    assert_eq!(check_ops(&ops, 1e-5), NONE);
    assert_eq!(check_encoder_ops(&ops, 1e-5), NONE);
    assert_eq!(check_ops(&ops.by_libtorch_alone(), 1e-5), NONE);
}

#[test]
fn ops_with_bf16_products_agree_with_the_reference_as_far_as_eight_bits_go() {
    let ops = ops(Kind::BFloat16, 512 << 20).unwrap();
    assert_eq!(check_ops(&ops, 3e-2), NONE);
    assert_eq!(check_encoder_ops(&ops, 3e-2), NONE);
}

#[test]
fn a_model_agrees_with_transformers_and_pytorch_keeping_logits_or_not() {
    for keep_logits_limit in [0, 512 << 20] {
        assert_eq!(check_model(&|| ops(Kind::Float, keep_logits_limit)), NONE);
    }
    assert_eq!(check_model(&|| Ok(ops(Kind::Float, 0)?.by_libtorch_alone())), NONE);
}

#[test]
fn a_ranker_agrees_with_llm_blender() {
    assert_eq!(check_ranker(&|| ops(Kind::Float, 0)), NONE);
}

#[test]
fn reward_models_agree_with_transformers() {
    assert_eq!(check_reward_models(&|| ops(Kind::Float, 0)), NONE);
}

#[test]
fn general_preference_models_and_judges_agree_with_transformers() {
    assert_eq!(check_preferring_models(&|| ops(Kind::Float, 0)), NONE);
}

#[test]
fn weights_in_blocks_give_the_numbers_of_the_same_weights_in_f32() {
    for keep_logits_limit in [0, 512 << 20] {
        assert_eq!(check_quantized_weights(&|| ops(Kind::Float, keep_logits_limit)), NONE);
    }
}

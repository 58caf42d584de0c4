//! The checks that every op set must pass: each op against the reference op set, and a whole model
//! against transformers and PyTorch.

use sppo_backend_candle::CandleOps;
use sppo_model::golden::{
    check_model, check_preferring_models, check_quantized_weights, check_ranker,
    check_reward_models,
};
use sppo_model::ops::conformance::check_ops;
use sppo_model::ops::encoder_conformance::check_encoder_ops;

const NONE: [String; 0] = [];

#[test]
fn ops_agree_with_the_reference() {
    let ops = CandleOps::new(2, 512 << 20).unwrap();
    assert_eq!(check_ops(&ops, 1e-5), NONE);
    assert_eq!(check_encoder_ops(&ops, 1e-5), NONE);
}

#[test]
fn a_model_agrees_with_transformers_and_pytorch_keeping_logits_or_not() {
    for keep_logits_limit in [0, 512 << 20] {
        assert_eq!(check_model(&|| CandleOps::new(2, keep_logits_limit)), NONE);
    }
}

#[test]
fn a_ranker_agrees_with_llm_blender() {
    assert_eq!(check_ranker(&|| CandleOps::new(2, 0)), NONE);
}

#[test]
fn reward_models_agree_with_transformers() {
    assert_eq!(check_reward_models(&|| CandleOps::new(2, 0)), NONE);
}

#[test]
fn general_preference_models_and_judges_agree_with_transformers() {
    assert_eq!(check_preferring_models(&|| CandleOps::new(2, 0)), NONE);
}

#[test]
fn weights_in_blocks_give_the_numbers_of_the_same_weights_in_f32() {
    for keep_logits_limit in [0, 512 << 20] {
        assert_eq!(check_quantized_weights(&|| CandleOps::new(2, keep_logits_limit)), NONE);
    }
}

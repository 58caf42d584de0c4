//! The compute backend `burn`: language models on [burn](burn_tensor) tensors, in f32, on the CPU by
//! burn's backend `flex`, or with the feature `wgpu` on whatever GPU wgpu reaches.
//!
//! burn's automatic differentiation is not used: every op of [`sppo_model::ops::Ops`] has its backward
//! form here, made of the same tensor operations. They are written to be read: there are no kernels of
//! this crate's own, and the weights of attention exist as a matrix per segment.
//!
//! burn reports most failures by panicking. The plugin interface turns a panic into an error that names
//! this backend.

mod attention;
mod backend;
mod cached_attention;
mod elementwise;
mod encoder_ops;
mod head;
mod ops;
mod parameter;
mod tensors;

pub use backend::{BurnBackend, BurnConfig, choose_device};
pub use burn_tensor::Device;
pub use cached_attention::KeyValueCache;
pub use encoder_ops::RelativeTables;
pub use ops::BurnOps;
pub use parameter::Parameter;

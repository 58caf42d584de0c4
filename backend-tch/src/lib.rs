//! The compute backend `tch`: language models on libtorch, through [tch](https://docs.rs/tch), on the
//! CPU and on CUDA devices, in f32 or with matrix products in bf16.
//!
//! libtorch's automatic differentiation is not used: every op of [`sppo_model::ops::Ops`] has its
//! backward form here, made of libtorch's kernels, and gradients of weights accumulate in place.
//! Attention runs on libtorch's fused kernels where these have what the model needs.
//!
//! The crate is empty without its feature `libtorch`; `fetch-libtorch` beside it provides what that
//! needs.
#![cfg(feature = "libtorch")]

mod attention;
mod backend;
mod cached_attention;
mod device;
mod draw;
mod encoder;
mod engine;
mod libraries;
mod ops;
mod optimizer;
mod packed_attention;
mod parameter;
mod ragged_attention;
mod ragged_decoding;
mod tensors;

pub use backend::{DataType, TchBackend, TchConfig};
pub use cached_attention::KeyValueCache;
pub use device::choose_device;
pub use encoder::RelativeTables;
pub use engine::{TchOps, TchOptions};
pub use parameter::Parameter;
pub use tensors::Activation;

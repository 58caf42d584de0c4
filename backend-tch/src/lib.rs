//! The compute backend `tch`: language models on libtorch, through [tch](https://docs.rs/tch), on the
//! CPU and on CUDA devices, in f32 or with matrix products in bf16.
//!
//! libtorch's automatic differentiation is not used: every op of [`sppo_model::ops::Ops`] has its
//! backward form here, made of libtorch's kernels, and gradients of weights accumulate in place.
//! Attention runs on libtorch's fused kernels where these can do what the model needs. In f32 on the CPU, all
//! but products of many rows run on the kernels of [`sppo_kernels`].
//!
//! The crate is empty without its feature `libtorch`; `fetch-libtorch` beside it provides the library.
#![cfg(feature = "libtorch")]

mod attention;
mod backend;
mod device;
mod device_blocks;
mod draw;
mod elementwise;
mod encoder_ops;
mod head;
mod kernels;
mod libraries;
mod linear;
mod masters;
mod new_tensor;
mod norm;
mod ops;
mod optimizer;
mod parameter;
mod process_group;
mod quantized_weight;
mod sharding;
mod team;
mod tensors;

pub use attention::cached::KeyValueCache;
pub use attention::disentangled::RelativeTables;
pub use backend::{DataType, TchBackend, TchConfig};
pub use device::choose_device;
pub use ops::{TchOps, TchOptions};
pub use parameter::Parameter;
pub use process_group::{
    AgentStore, Fault, GroupError, GroupResult, GroupSettings, Launch, ProcessGroup, UnderWay,
};
pub use tensors::Activation;

//! From what a user calls a model to files on this machine.

mod hub;
mod origin;
mod resolve;
mod wheel;

pub use origin::{
    DEFAULT_MODEL, DownloadProgress, ModelOrigin, ModelSourceIdentity, ModelSourceOptions,
    ResolvedModel,
};
pub use resolve::{may_be_fetched, resolve};

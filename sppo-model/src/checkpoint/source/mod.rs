//! Files on this machine for a user's name of a model.

mod hub;
mod origin;
mod resolve;
mod wheel;

pub use origin::{
    DEFAULT_MODEL, DownloadProgress, ModelOrigin, ModelSourceIdentity, ModelSourceOptions,
    ResolvedModel,
};
pub use resolve::{may_be_fetched, resolve};

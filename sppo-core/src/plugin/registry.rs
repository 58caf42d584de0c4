//! Finding plugins by name. Built-in ones register themselves at link time.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Backend, Oracle, PluginError};
use crate::error::{Error, Result};

#[doc(hidden)]
pub use inventory;

/// What a plugin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PluginKind {
    /// Holds and trains the policy.
    Backend,
    /// Judges answers.
    Oracle,
}

/// Who a plugin is, known without running it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Manifest {
    /// What it is.
    pub kind: PluginKind,
    /// The name it is chosen by.
    pub name: &'static str,
    /// Its own version.
    pub version: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
}

/// An oracle as its author writes it. Export it with [`register_oracle!`](crate::register_oracle).
pub trait OraclePlugin: Oracle + Sized + 'static {
    /// The table `[oracle.<name>]`: doc comments become the schema's descriptions; use
    /// `#[serde(default, deny_unknown_fields)]`.
    type Config: DeserializeOwned + JsonSchema;
    /// The name it is chosen by, for instance `rules`.
    const NAME: &'static str;
    /// What it does, in one line.
    const SUMMARY: &'static str;

    /// Makes the oracle from its settings.
    ///
    /// # Errors
    /// When a setting makes no sense.
    fn create(config: Self::Config) -> std::result::Result<Self, PluginError>;
}

/// A backend as its author writes it. Export it with [`register_backend!`](crate::register_backend).
pub trait BackendPlugin: Backend + Sized + 'static {
    /// The table `[backend.<name>]`.
    type Config: DeserializeOwned + JsonSchema;
    /// The name it is chosen by, for instance `candle`.
    const NAME: &'static str;
    /// What it does, in one line.
    const SUMMARY: &'static str;

    /// Makes the backend from its settings.
    ///
    /// # Errors
    /// When a setting makes no sense on this machine.
    fn create(config: Self::Config) -> std::result::Result<Self, PluginError>;
}

/// An oracle in the registry.
pub struct RegisteredOracle {
    /// Who it is.
    pub manifest: Manifest,
    /// JSON Schema of its settings.
    pub config_schema: fn() -> Value,
    /// Makes it from its settings.
    pub create: fn(Value) -> std::result::Result<Box<dyn Oracle>, PluginError>,
}

/// A backend in the registry.
pub struct RegisteredBackend {
    /// Who it is.
    pub manifest: Manifest,
    /// JSON Schema of its settings.
    pub config_schema: fn() -> Value,
    /// Makes it from its settings.
    pub create: fn(Value) -> std::result::Result<Box<dyn Backend>, PluginError>,
}

inventory::collect!(RegisteredOracle);
inventory::collect!(RegisteredBackend);

/// Registers an [`OraclePlugin`] under its name in every program that links it.
#[macro_export]
macro_rules! register_oracle {
    ($oracle:ty) => {
        $crate::plugin::inventory::submit! {
            $crate::plugin::RegisteredOracle {
                manifest: $crate::plugin::Manifest {
                    kind: $crate::plugin::PluginKind::Oracle,
                    name: <$oracle as $crate::plugin::OraclePlugin>::NAME,
                    version: env!("CARGO_PKG_VERSION"),
                    summary: <$oracle as $crate::plugin::OraclePlugin>::SUMMARY,
                },
                config_schema: || {
                    $crate::plugin::schema_of::<<$oracle as $crate::plugin::OraclePlugin>::Config>()
                },
                create: |config| {
                    let config = $crate::plugin::deserialize_config(config)?;
                    Ok(Box::new(<$oracle as $crate::plugin::OraclePlugin>::create(config)?))
                },
            }
        }
    };
}

/// Registers a [`BackendPlugin`] under its name in every program that links it.
#[macro_export]
macro_rules! register_backend {
    ($backend:ty) => {
        $crate::plugin::inventory::submit! {
            $crate::plugin::RegisteredBackend {
                manifest: $crate::plugin::Manifest {
                    kind: $crate::plugin::PluginKind::Backend,
                    name: <$backend as $crate::plugin::BackendPlugin>::NAME,
                    version: env!("CARGO_PKG_VERSION"),
                    summary: <$backend as $crate::plugin::BackendPlugin>::SUMMARY,
                },
                config_schema: || {
                    $crate::plugin::schema_of::<<$backend as $crate::plugin::BackendPlugin>::Config>()
                },
                create: |config| {
                    let config = $crate::plugin::deserialize_config(config)?;
                    Ok(Box::new(<$backend as $crate::plugin::BackendPlugin>::create(config)?))
                },
            }
        }
    };
}

#[doc(hidden)]
pub fn deserialize_config<T: DeserializeOwned>(
    config: Value,
) -> std::result::Result<T, PluginError> {
    serde_path_to_error::deserialize(config)
        .map_err(|error| PluginError::configuration(format!("{}: {}", error.path(), error.inner())))
}

/// JSON Schema of a settings type.
#[doc(hidden)]
#[must_use]
pub fn schema_of<T: JsonSchema>() -> Value {
    schemars::schema_for!(T).to_value()
}

/// Every oracle at hand, by name.
#[must_use]
pub fn oracles() -> Vec<&'static RegisteredOracle> {
    let mut all: Vec<_> = inventory::iter::<RegisteredOracle>().collect();
    all.sort_by_key(|entry| entry.manifest.name);
    all
}

/// Every backend at hand, by name.
#[must_use]
pub fn backends() -> Vec<&'static RegisteredBackend> {
    let mut all: Vec<_> = inventory::iter::<RegisteredBackend>().collect();
    all.sort_by_key(|entry| entry.manifest.name);
    all
}

/// Makes the oracle of this name.
///
/// # Errors
/// When there is none of this name, or its settings are refused.
pub fn create_oracle(name: &str, config: Value) -> Result<Box<dyn Oracle>> {
    let all = oracles();
    let entry = all.iter().find(|entry| entry.manifest.name == name).ok_or_else(|| {
        unknown_plugin("oracle", name, all.iter().map(|entry| entry.manifest.name))
    })?;
    (entry.create)(config)
        .map_err(|error| Error::from(error).from_plugin(format_args!("oracle `{name}`")))
}

/// Makes the backend of this name.
///
/// # Errors
/// When there is none of this name, or its settings are refused.
pub fn create_backend(name: &str, config: Value) -> Result<Box<dyn Backend>> {
    let all = backends();
    let entry = all.iter().find(|entry| entry.manifest.name == name).ok_or_else(|| {
        unknown_plugin("backend", name, all.iter().map(|entry| entry.manifest.name))
    })?;
    (entry.create)(config)
        .map_err(|error| Error::from(error).from_plugin(format_args!("backend `{name}`")))
}

fn unknown_plugin(kind: &str, name: &str, known: impl Iterator<Item = &'static str>) -> Error {
    let known: Vec<_> = known.collect();
    Error::configuration(kind, format!("there is no {kind} named `{name}`")).with_hint(format!(
        "choose one of: {}; `sppo plugin list` describes them",
        known.join(", ")
    ))
}

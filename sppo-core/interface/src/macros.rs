//! Macros by which a plugin's crate makes its plugin known, both to a program that links it and to one that
//! opens its library. The symbols carry the crate's name, so that several such crates can be linked together.

/// Exports a [`Plugin`](crate::Plugin) that is an [`Oracle`](crate::Oracle). A program that links the crate
/// has the oracle built in; built as a `cdylib`, the crate is a library that any `sppo` of the same
/// interface version can open. One oracle per crate.
#[macro_export]
macro_rules! export_oracle {
    ($oracle:ty) => {
        $crate::export_plugin! { dyn $crate::Oracle, "oracle", "oracle", $oracle }
    };
}

/// Exports a [`Plugin`](crate::Plugin) that is a [`Backend`](crate::Backend), as [`export_oracle!`] does an
/// oracle. One backend per crate.
#[macro_export]
macro_rules! export_backend {
    ($backend:ty) => {
        $crate::export_plugin! { dyn $crate::Backend, "backend", "backend", $backend }
    };
}

/// Exports a [`Plugin`](crate::Plugin) that is a [`RolloutEngine`](crate::RolloutEngine), as [`export_oracle!`]
/// does an oracle. A crate may hold several, each exported with a symbol of its own:
/// `export_sampler!(Vllm, "vllm")`.
#[macro_export]
macro_rules! export_sampler {
    ($sampler:ty) => {
        $crate::export_plugin! { dyn $crate::RolloutEngine, "sampler", "sampler", $sampler }
    };
    ($sampler:ty, $symbol:literal) => {
        $crate::export_plugin! {
            dyn $crate::RolloutEngine, "sampler", concat!("sampler.", $symbol), $sampler
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! export_plugin {
    ($object:ty, $kind_name:literal, $symbol:expr, $plugin:ty) => {
        const _: () = {
            use $crate::abi::{self, INTERFACE_VERSION, INTERFACE_VERSION_TEXT, Pluggable};
            use $crate::{EmbeddedPlugin, Manifest, Plugin, inventory};

            const NAME: &str = <$plugin as Plugin>::NAME;
            const SUMMARY: &str = <$plugin as Plugin>::SUMMARY;
            const VERSION: &str = env!("CARGO_PKG_VERSION");

            inventory::submit! {
                EmbeddedPlugin {
                    manifest: Manifest {
                        kind: <$object as Pluggable>::KIND,
                        name: ::std::borrow::Cow::Borrowed(NAME),
                        version: ::std::borrow::Cow::Borrowed(VERSION),
                        interface_version: INTERFACE_VERSION,
                        summary: ::std::borrow::Cow::Borrowed(SUMMARY),
                    },
                    config_schema: || $crate::schema_of::<<$plugin as Plugin>::Config>(),
                    create: abi::create_embedded::<$object, $plugin>,
                }
            }

            const PAIRS: &[(&str, &str)] = &[
                ("interface", INTERFACE_VERSION_TEXT),
                ("core", abi::CORE_VERSION),
                ("kind", $kind_name),
                ("name", NAME),
                ("version", VERSION),
                ("summary", SUMMARY),
                ("missing_library_hint", <$plugin as Plugin>::MISSING_LIBRARY_HINT),
            ];

            #[used]
            #[unsafe(export_name = concat!(
                                "sppo_plugin_manifest.", env!("CARGO_PKG_NAME"), ".", $symbol
                            ))]
            pub static MANIFEST: [u8; abi::manifest_length(PAIRS)] = abi::manifest_bytes(PAIRS);

            #[used]
            #[unsafe(export_name = concat!(
                                "sppo_plugin_module.", env!("CARGO_PKG_NAME"), ".", $symbol
                            ))]
            pub static MODULE: abi::LibHeader = abi::plugin_header::<$object, $plugin>();
        };
    };
}

//! The library of a plugin, and the manifest in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sppo_core::fuzzing::inspect_library;
use sppo_fuzz::{file, within_limits};
use sppo_plugin::abi::ManifestText;

fuzz_target!(|data: &[u8]| {
    let path = file("plugin.so", data);
    within_limits(|| {
        let _ = ManifestText::parse(data);
        inspect_library(&path);
    });
});

//! A configuration in TOML, and then an assignment as `--set` takes it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sppo_core::config::{Config, Layers, Override, Preset};
use sppo_fuzz::{file, halves, within_limits};

fuzz_target!(|data: &[u8]| {
    let (document, assignment) = halves(data);
    let path = file("sppo.toml", document);
    let assignment = String::from_utf8_lossy(assignment);
    within_limits(|| {
        let overrides = Override::parse("--set", &assignment).into_iter().collect();
        let layers = Layers { preset: Some(Preset::Quick), files: vec![path], overrides };
        if let Ok(resolved) = Config::resolve(&layers) {
            let _ = resolved.config.to_toml();
        }
    });
});

//! A run's record and the manifest of an artefact, as resuming finds them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sppo_core::config::Config;
use sppo_core::run_directory::{ModelIdentity, RunDirectory, RunIdentity};
use sppo_fuzz::{directory, file, halves, within_limits};

fuzz_target!(|data: &[u8]| {
    let (record, manifest) = halves(data);
    let manifests = directory().join("manifests/iteration-1");
    std::fs::create_dir_all(manifests).expect("a directory");
    std::fs::create_dir_all(directory().join("iteration-1")).expect("a directory");
    file("run.json", record);
    file("iteration-1/rollouts.jsonl", b"{}\n");
    file("manifests/iteration-1/rollouts.jsonl.json", manifest);
    let identity = RunIdentity {
        config: Config::default(),
        model: ModelIdentity { name: "m".into(), sha256: "0".into(), ..Default::default() },
        prompts_sha256: "1".into(),
        plugins: Vec::new(),
    };
    within_limits(|| {
        let _ = RunDirectory::read_identity(directory());
        let run = RunDirectory::resume(directory(), identity, &["training".to_owned()]);
        let _ = run.map(|run| run.artifacts().count());
    });
    let _ = std::fs::remove_dir_all(directory().join("set-aside"));
});

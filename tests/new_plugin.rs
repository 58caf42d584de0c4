//! A crate that `sppo plugin new` writes, outside of this repository, builds and does what it says it does.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{cargo, fixture, require_success, small_run, sppo, stdout_of, target_directory};

/// Builds the crate as its README says, but among what is built already, in versions that are known to be there,
/// and without optimisation, which would take most of the time. Returns the library.
fn build(directory: &Path, release: bool) -> PathBuf {
    fs::copy(fixture("../Cargo.lock"), directory.join("Cargo.lock")).unwrap();
    for action in ["test", "build"] {
        let mut cargo = cargo(action);
        cargo.current_dir(directory);
        cargo.args(["--config", "profile.release.opt-level=0"]);
        cargo.args(["--config", "profile.dev.debug=false"]);
        if release {
            cargo.arg("--release");
        }
        require_success(&cargo.output().expect("cargo starts"));
    }
    let file = format!("{}my_oracle{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    target_directory().join(if release { "release" } else { "debug" }).join(file)
}

fn a_new_crate_builds_and_loads(release: bool) {
    let directory = tempfile::tempdir().unwrap();
    let own = directory.path().join("my-oracle");
    require_success(&sppo().args(["plugin", "new"]).arg(&own).output().unwrap());
    let library = build(&own, release);

    let verdict = stdout_of(sppo().args(["plugin", "check"]).arg(&library));
    assert!(verdict.lines().count() >= 8 && !verdict.contains("FAILED"), "{verdict}");
    let mut run = small_run(directory.path(), "run");
    run.args(["--oracle", "my-oracle", "--plugin"]).arg(&library);
    run.args(["--set", "oracle.my-oracle.target_words=5"]);
    require_success(&run.output().unwrap());
}

#[test]
#[cfg_attr(debug_assertions, ignore = "builds all dependencies in release")]
fn a_new_crate_builds_and_loads_in_release() {
    a_new_crate_builds_and_loads(true);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "builds all dependencies in debug")]
fn a_new_crate_builds_and_loads_in_debug() {
    a_new_crate_builds_and_loads(false);
}

//! What the whole-program tests share: the binary, a tiny model, and a small run on it.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The binary under test, without a user's environment.
pub(crate) fn sppo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sppo"));
    command.env_remove("SPPO_LOG").env_remove("SPPO_PLUGIN_PATH").env("NO_COLOR", "1");
    command.env("SPPO_DATA_DIRECTORY", fixture("no-user-data"));
    command
}

/// A file or directory below `tests/`.
pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(path)
}

/// The standard output of a command that must succeed.
pub(crate) fn stdout_of(command: &mut Command) -> String {
    let output = command.output().expect("the binary starts");
    require_success(&output);
    String::from_utf8(output.stdout).expect("UTF-8 on standard output")
}

pub(crate) fn require_success(output: &Output) {
    assert!(
        output.status.success(),
        "{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A command fails with this code and says all of this.
pub(crate) fn refused(command: &mut Command, code: i32, told: &[&str]) {
    let output = command.output().expect("the binary starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in told {
        assert!(text.contains(part), "`{part}` is not in\n{text}");
    }
}

/// A two-iteration run of a random three-layer model that takes well under a second, with shards and
/// training states small enough that a kill lands between commits.
pub(crate) fn small_run(directory: &Path, name: &str) -> Command {
    let mut command = sppo();
    command
        .arg("run")
        .args(["--name", name, "--iterations", "2", "--seed", "7", "--json"])
        .arg("--run-directory")
        .arg(directory)
        .arg("--model")
        .arg(fixture("fixtures/lm/llama"))
        .arg("--prompts")
        .arg(fixture("fixtures/prompts-small.jsonl"))
        .arg("--held-out")
        .arg(fixture("fixtures/prompts-held-out-small.jsonl"))
        .args(["--set", "sampling.samples_per_prompt=3"])
        .args(["--set", "sampling.max_new_tokens=24"])
        .args(["--set", "sampling.prompts_per_shard=2"])
        .args(["--set", "training.global_batch_size=2"])
        .args(["--set", "training.commit_every_steps=1"])
        .args(["--set", "evaluation.samples_per_prompt=1"])
        // No answer of this model is too long or ends by itself as the rules are, and where all are
        // judged equal nothing is trained.
        .args(["--set", "oracle.rules.length.min_words=1"])
        .args(["--set", "oracle.rules.length.max_words=1"]);
    command
}

/// The library of a crate of this workspace, as cargo has built it beside the tests.
pub(crate) fn library(crate_name: &str) -> PathBuf {
    let path = library_file(crate_name);
    assert!(path.is_file(), "{} was not built", path.display());
    path
}

/// Where cargo puts the library of a crate when it builds it.
pub(crate) fn library_file(crate_name: &str) -> PathBuf {
    use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
    let file = format!("{DLL_PREFIX}{}{DLL_SUFFIX}", crate_name.replace('-', "_"));
    let test = std::env::current_exe().expect("a test has a file");
    test.parent().expect("a file lies in a directory").join(file)
}

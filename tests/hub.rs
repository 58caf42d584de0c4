//! `sppo push`, and models that are fetched, with a hub on this machine that speaks the hub's protocol.

#[path = "support/hub.rs"]
mod hub;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use hub::{COMMIT, Fault, FaultKind, Hub, PART_BYTES, TOKEN};
use serde_json::{Value, json};
use support::{
    Running, fixture, read_json, refused, require_success, small_run, small_run_of, sppo, stdout_of,
};
use tempfile::TempDir;

/// A finished run of two iterations.
fn played() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    require_success(&small_run(directory.path(), "mine").output().unwrap());
    directory
}

/// The push of a run or a checkpoint, by the account `me`.
fn push(hub: &str, home: &Path, source: &str) -> Command {
    let mut command = sppo();
    command.args(["push", source, "--json", "--run-directory"]).arg(home);
    command.env("HF_ENDPOINT", hub).env("HF_HOME", home.join("hub")).env("SPPO_CACHE", home);
    command.env("HF_TOKEN", TOKEN);
    command
}

fn pushed(command: &mut Command) -> Value {
    serde_json::from_str(&stdout_of(command)).unwrap()
}

fn checkpoint(directory: &TempDir, iteration: u32) -> PathBuf {
    directory.path().join(format!("mine/iteration-{iteration}/checkpoint"))
}

#[test]
fn the_hub_gets_the_checkpoint_and_a_complete_card_and_nothing_twice() {
    let (directory, hub) = (played(), Hub::start());
    let command = || {
        let mut command = push(hub.address(), directory.path(), "mine");
        command.args(["--repo", "model", "--license", "apache-2.0", "--dataset", "org/questions"]);
        command
    };
    let told = pushed(&mut command());
    assert_eq!(told["repository"], "me/model");
    let files = hub.files("me/model", "main");
    for entry in std::fs::read_dir(checkpoint(&directory, 2)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name != "README.md" {
            assert!(files[&name] == std::fs::read(&path).unwrap(), "{name}");
        }
    }
    let card = String::from_utf8(files["README.md"].clone()).unwrap();
    let rate =
        read_json(&directory.path().join("mine/iteration-2/report.json"))["win_rate"]["mean"]
            .clone();
    let row = format!("| 2 | {:.1} % |", 100.0 * rate.as_f64().unwrap());
    for part in ["license: apache-2.0\n", "datasets: [org/questions]\n", "model=\"me/model\"", &row]
    {
        assert!(card.contains(part), "no `{part}` in\n{card}");
    }
    assert!(!card.contains(directory.path().to_str().unwrap()), "{card}");
    let picture = String::from_utf8(files["win-rate.svg"].clone()).unwrap();
    assert!(card.contains("](win-rate.svg)") && picture.matches("<circle").count() == 2);

    hub.requests();
    let again = pushed(&mut command());
    assert_eq!((&again["commit"], &again["files"]), (&Value::Null, &json!([])));
    assert!(hub.requests().iter().all(|line| !line.starts_with("PUT")));
    assert_eq!(hub.commits(), 1);

    // Another branch needs a commit, and none of the large files.
    let mut branch = command();
    branch.args(["--revision", "refs/first", "--iteration", "1"]);
    pushed(&mut branch);
    assert_ne!(
        hub.files("me/model", "refs/first")["model.safetensors"],
        files["model.safetensors"]
    );
    assert_eq!(hub.files("me/model", "main"), files);
}

#[test]
fn a_push_that_was_killed_goes_on_after_the_parts_that_arrived() {
    let (directory, hub) = (played(), Hub::start());
    let parts = std::fs::metadata(checkpoint(&directory, 2).join("model.safetensors"))
        .unwrap()
        .len() as usize;
    let parts = parts.div_ceil(PART_BYTES);
    assert!(parts > 3);
    hub.fail(&[Fault { at: "PUT ", after: 2, times: 1, kind: FaultKind::Hang }]);
    let mut first =
        Running::start(push(hub.address(), directory.path(), "mine").args(["--repo", "model"]));
    first.wait_until(|| hub.has_been_asked("PUT ", 3));
    drop(first);

    hub.requests();
    hub.fail(&[]);
    pushed(push(hub.address(), directory.path(), "mine").args(["--repo", "model"]));
    let sent = hub.requests().iter().filter(|line| line.starts_with("PUT")).count();
    assert_eq!(sent, parts - 2);
    let stored = &hub.files("me/model", "main")["model.safetensors"];
    assert!(*stored == std::fs::read(checkpoint(&directory, 2).join("model.safetensors")).unwrap());
    // The signed addresses are not kept.
    assert_eq!(std::fs::read_dir(directory.path().join("uploads")).unwrap().count(), 0);
}

#[test]
fn parts_that_the_storage_has_given_up_are_sent_again() {
    let (directory, hub) = (played(), Hub::start());
    hub.fail(&[Fault { at: "PUT ", after: 2, times: 1, kind: FaultKind::Hang }]);
    let mut first =
        Running::start(push(hub.address(), directory.path(), "mine").args(["--repo", "model"]));
    first.wait_until(|| hub.has_been_asked("PUT ", 3));
    drop(first);
    hub.fail(&[Fault {
        at: "PUT /storage/part/upload-1/",
        after: 0,
        times: 1,
        kind: FaultKind::Status(403),
    }]);
    pushed(push(hub.address(), directory.path(), "mine").args(["--repo", "model"]));
    assert_eq!(hub.commits(), 1);
}

#[test]
fn failures_that_pass_are_waited_for() {
    let (directory, hub) = (played(), Hub::start());
    let once = |at, kind| Fault { at, after: 0, times: 1, kind };
    hub.fail(&[
        once("POST /api/repos/create", FaultKind::Status(503)),
        once("POST /api/models/me/model/preupload", FaultKind::Drop),
        once("POST /me/model.git", FaultKind::Status(429)),
        once("PUT /storage/part/upload-1/00001", FaultKind::Status(500)),
        once("PUT /storage/part/upload-1/00003", FaultKind::Drop),
        once("POST /storage/complete", FaultKind::Status(502)),
        once("POST /verify", FaultKind::Status(504)),
    ]);
    pushed(push(hub.address(), directory.path(), "mine").args(["--repo", "model"]));
    assert_eq!(hub.commits(), 1);
}

#[test]
fn refusals_are_told_in_a_sentence_that_never_shows_the_token() {
    let (directory, hub) = (played(), Hub::start());
    hub.put("another/taken", "README.md", b"theirs");
    let to = |repository: &str| {
        let mut command = push(hub.address(), directory.path(), "mine");
        command.args(["--repo", repository]);
        command
    };
    refused(
        to("model").env("HF_TOKEN", "hf_wrong"),
        3,
        &["HF_TOKEN: the hub does not know this token"],
    );
    refused(to("model").env_remove("HF_TOKEN"), 3, &["there is no token", "hf auth login"]);
    refused(to("model").env("HF_HUB_OFFLINE", "1"), 3, &["HF_HUB_OFFLINE forbids"]);
    refused(&mut to("another/new"), 3, &["may not write to `another/new`", "rights to create"]);
    refused(&mut to("another/taken"), 3, &["may not write to `another/taken`"]);
    refused(&mut to("a/b/c"), 3, &["`a/b/c` cannot be the name"]);
    refused(to("model").args(["--iteration", "9"]), 5, &["iteration 9 is not there"]);
    let mut nowhere = push("http://127.0.0.1:9", directory.path(), "mine");
    refused(nowhere.args(["--repo", "model"]), 6, &["the hub cannot be reached", "connection"]);
    hub.fail(&[Fault {
        at: "POST /api/models/me/model/commit",
        after: 0,
        times: 9,
        kind: FaultKind::Status(500),
    }]);
    refused(&mut to("model"), 6, &["the hub refuses the commit (HTTP 500): asked to fail"]);

    hub.fail(&[]);
    hub.requests();
    let output = to("model").args(["--iteration", "1", "-vvv"]).output().unwrap();
    require_success(&output);
    assert!(hub.has_been_asked("PUT /storage/part", 1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains(TOKEN) && !said.contains("storage/part"), "{said}");
}

#[test]
fn weights_of_another_layout_do_not_stay_beside_the_new_ones() {
    let (directory, hub) = (played(), Hub::start());
    hub.put("me/model", "model-00001-of-00002.safetensors", b"old");
    hub.put("me/model", "notes.md", b"mine");
    let source = checkpoint(&directory, 1);
    let told = pushed(
        push(hub.address(), directory.path(), source.to_str().unwrap())
            .args(["--repo", "me/model"]),
    );
    assert_eq!(told["removed"], json!(["model-00001-of-00002.safetensors"]));
    let files = hub.files("me/model", "main");
    assert!(files.contains_key("notes.md") && files.contains_key("model.safetensors"));
    let card = String::from_utf8(files["README.md"].clone()).unwrap();
    assert!(card.contains("iteration 1 of 2"), "{card}");
}

#[test]
fn adapters_name_a_model_that_others_can_find() {
    let (directory, hub) = (tempfile::tempdir().unwrap(), Hub::start());
    let mut run = small_run(directory.path(), "mine");
    require_success(&run.args(["--lora-rank", "2"]).output().unwrap());
    let command = || {
        let mut command = push(hub.address(), directory.path(), "mine");
        command.args(["--repo", "adapters"]);
        command
    };
    refused(&mut command(), 4, &["a model on this machine", "--base-model"]);
    pushed(command().args(["--base-model", "org/base"]));
    let files = hub.files("me/adapters", "main");
    let config: Value = serde_json::from_slice(&files["adapter_config.json"]).unwrap();
    assert_eq!(config["base_model_name_or_path"], "org/base");
    let all: Vec<u8> = files.into_values().flatten().collect();
    let model = fixture("fixtures/lm/llama");
    assert!(!String::from_utf8_lossy(&all).contains(model.to_str().unwrap()));
}

#[test]
fn a_model_is_fetched_into_the_shared_cache_and_goes_on_where_it_stopped() {
    let (directory, hub) = (tempfile::tempdir().unwrap(), Hub::start());
    for file in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        let content = std::fs::read(fixture("fixtures/lm/llama").join(file)).unwrap();
        hub.put("org/tiny", file, &content);
    }
    let card = "---\nlicense: mit\n---\n";
    hub.put("org/tiny", "README.md", card.as_bytes());
    let play = |name: &str| {
        let mut command = small_run_of(Path::new("org/tiny"), directory.path(), name);
        command.env("HF_ENDPOINT", hub.address()).env("HF_HOME", directory.path().join("hub"));
        command.env("HF_TOKEN", TOKEN);
        command
    };
    hub.fail(&[Fault { at: "GET /storage/content/", after: 0, times: 1, kind: FaultKind::Cut }]);
    refused(
        &mut play("fetched"),
        4,
        &["model.safetensors cannot be fetched", "goes on where it stopped"],
    );
    hub.requests();
    require_success(&play("fetched").output().unwrap());
    let half = std::fs::metadata(fixture("fixtures/lm/llama/model.safetensors")).unwrap().len() / 2;
    assert!(hub.requests().contains(&format!("from byte {half}")));

    let snapshot = directory.path().join("hub/hub/models--org--tiny/snapshots").join(COMMIT);
    for (name, content) in hub.files("org/tiny", "main") {
        assert!(std::fs::read(snapshot.join(&name)).unwrap() == content, "{name}");
    }
    // The run knows where its model comes from, and so does the card of its checkpoint.
    let card =
        std::fs::read_to_string(directory.path().join("fetched/iteration-1/checkpoint/README.md"))
            .unwrap();
    assert!(card.contains("base_model: org/tiny\n") && card.contains("license: mit\n"), "{card}");

    // From now on without the hub.
    hub.requests();
    require_success(&play("offline").env("HF_HUB_OFFLINE", "1").output().unwrap());
    assert_eq!(hub.requests(), Vec::<String>::new());
}

#[test]
fn damaged_weights_are_not_taken_from_the_hub() {
    let (directory, hub) = (tempfile::tempdir().unwrap(), Hub::start());
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let content = std::fs::read(fixture("fixtures/lm/llama").join(file)).unwrap();
        hub.put("org/tiny", file, &content);
    }
    hub.fail(&[Fault { at: "GET /storage/content/", after: 0, times: 1, kind: FaultKind::Alter }]);
    let mut command = small_run_of(Path::new("org/tiny"), directory.path(), "fetched");
    command.env("HF_ENDPOINT", hub.address());
    command.env("HF_HOME", directory.path().join("hub")).env("HF_TOKEN", TOKEN);
    refused(&mut command, 4, &["something else than the announced content arrived"]);
}

//! Plugins from libraries do what built-in ones do, are found where they should be, and are no longer
//! trusted when they change.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::{
    fixture, library, refused, require_success, small_run, sppo, sppo_alone_in, stdout_of,
};

const PLUGIN: i32 = 6;

fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("iteration-2/checkpoint/model.safetensors")).unwrap()
}

fn recorded(run: &Path) -> Value {
    serde_json::from_slice(&fs::read(run.join("run.json")).unwrap()).unwrap()
}

#[test]
fn a_run_with_libraries_ends_with_the_weights_of_one_with_built_in_plugins() {
    let directory = tempfile::tempdir().unwrap();
    require_success(&small_run(directory.path(), "built-in").output().unwrap());
    let mut loaded = small_run(directory.path(), "loaded");
    for name in ["sppo-backend-candle", "sppo-oracle-rules"] {
        loaded.arg("--plugin").arg(library(name));
    }
    require_success(&loaded.output().unwrap());
    let at = |name: &str| directory.path().join(name);
    assert!(weights(&at("built-in")) == weights(&at("loaded")), "the weights differ");

    let identity = recorded(&at("loaded"));
    for plugin in identity["plugins"].as_array().unwrap() {
        assert_eq!(plugin["sha256"].as_str().map(str::len), Some(64), "{plugin}");
    }
    assert!(recorded(&at("built-in"))["plugins"][0].get("sha256").is_none());
}

#[test]
fn a_run_goes_on_with_its_plugins_and_not_with_others() {
    let directory = tempfile::tempdir().unwrap();
    let own = directory.path().join("librules.so");
    fs::copy(library("sppo-oracle-rules"), &own).unwrap();
    let mut run = small_run(directory.path(), "run");
    require_success(&run.arg("--plugin").arg(&own).output().unwrap());
    let resume = || {
        let mut resume = sppo();
        resume.args(["run", "--resume", "--name", "run", "--json", "--run-directory"]);
        resume.arg(directory.path());
        resume
    };
    require_success(&resume().output().unwrap());
    // Bytes behind the end of a library change nothing but its hash.
    let mut bytes = fs::read(&own).unwrap();
    bytes.push(0);
    fs::write(&own, bytes).unwrap();
    refused(&mut resume(), 5, &["plugin.oracle.sha256"]);
}

#[test]
fn the_first_place_with_a_plugin_of_the_name_counts() {
    let directory = tempfile::tempdir().unwrap();
    let places = ["named", "configured", "environment", "user/plugins", "working"];
    let files: Vec<PathBuf> = places
        .iter()
        .map(|place| {
            let place = directory.path().join(place);
            fs::create_dir_all(&place).unwrap();
            let file =
                place.join("libmisbehaving.so").with_extension(std::env::consts::DLL_EXTENSION);
            fs::copy(library("sppo-zoo-misbehaving"), &file).unwrap();
            file.canonicalize().unwrap()
        })
        .collect();
    let settings = directory.path().join("sppo.toml");
    let configured = toml_path(files[1].parent().unwrap());
    fs::write(&settings, format!("[plugins]\npath = [{configured}]\n")).unwrap();
    let found = |places: usize| {
        let mut list = sppo();
        list.args(["plugin", "list", "--json"]).current_dir(files[4].parent().unwrap());
        if places & 1 != 0 {
            list.arg("--plugin").arg(&files[0]);
        }
        if places & 2 != 0 {
            list.arg("--config").arg(&settings);
        }
        if places & 4 != 0 {
            list.env("SPPO_PLUGIN_PATH", files[2].parent().unwrap());
        }
        if places & 8 != 0 {
            list.env("SPPO_DATA_DIRECTORY", directory.path().join("user"));
        }
        let all: Value = serde_json::from_str(&stdout_of(&mut list)).unwrap();
        let all = all.as_array().unwrap().clone();
        let first = all.iter().find(|plugin| plugin["name"] == "misbehaving");
        first.map(|plugin| {
            assert_eq!(plugin["hidden"], false);
            PathBuf::from(plugin["path"].as_str().unwrap())
        })
    };
    for (first, file) in files[..4].iter().enumerate() {
        // This place and all that come after it.
        assert_eq!(found((0b1111 << first) & 0b1111).as_ref(), Some(file));
    }
    let elsewhere = found(0).is_none_or(|path| !path.starts_with(directory.path()));
    assert!(elsewhere, "a library in the working directory was found");
}

fn toml_path(path: &Path) -> String {
    format!("'{}'", path.display())
}

#[test]
fn an_added_plugin_is_found_by_name_until_its_file_changes() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("libmisbehaving.so");
    fs::copy(library("sppo-zoo-misbehaving"), &file).unwrap();
    let sppo = || {
        let mut command = sppo_alone_in(&directory.path().join("program"));
        command.env("SPPO_DATA_DIRECTORY", directory.path().join("data"));
        command
    };
    let add = || require_success(&sppo().args(["plugin", "add"]).arg(&file).output().unwrap());
    let info = || {
        let mut command = sppo();
        command.args(["plugin", "info", "misbehaving"]);
        command
    };
    refused(&mut info(), 3, &["there is no plugin named `misbehaving`"]);
    add();
    assert!(stdout_of(&mut info()).contains("behaviour"));

    let mut bytes = fs::read(&file).unwrap();
    bytes.push(0);
    fs::write(&file, bytes).unwrap();
    refused(&mut info(), PLUGIN, &["has changed since it was added", "sppo plugin add"]);
    let list = stdout_of(sppo().args(["plugin", "list"]));
    assert!(list.contains("has changed since it was added"), "{list}");
    add();
    require_success(&info().output().unwrap());

    require_success(&sppo().args(["plugin", "remove", "misbehaving"]).output().unwrap());
    refused(&mut info(), 3, &["there is no plugin named `misbehaving`"]);
    refused(sppo().args(["plugin", "remove", "misbehaving"]), 3, &["no plugin named"]);
}

#[test]
fn settings_are_checked_against_the_schema_of_a_plugin_built_in_or_not() {
    let directory = tempfile::tempdir().unwrap();
    let refuses = |oracle: &str, setting: &str, told: &[&str]| {
        let mut run = small_run(directory.path(), "refused");
        run.args(["--oracle", oracle, "--plugin"]).arg(library("oracle-template"));
        run.args(["--set", &format!("oracle.{oracle}.{setting}")]);
        refused(&mut run, 3, &[&[&*format!("oracle `{oracle}`")], told].concat());
    };
    let misspelt = ["unknown field `target_word`", "did you mean `target_words`?"];
    refuses("oracle-template", "target_word=3", &misspelt);
    refuses("oracle-template", "target_words=\"many\"", &["`target_words` is not a whole number"]);
    refuses("rules", "length.max_word=3", &["unknown field `length.max_word`", "`max_words`?"]);
    refuses("rules", "length.max_words=-3", &["`length.max_words` is less than 0"]);
}

#[test]
fn all_plugins_of_this_repository_conform_built_in_or_not() {
    let model = fixture("fixtures/lm/llama");
    let candle = library("sppo-backend-candle");
    let plugins = ["rules", "mixture", "candle"]
        .map(PathBuf::from)
        .into_iter()
        .chain(["sppo-oracle-rules", "sppo-oracle-mixture", "oracle-template"].map(library));
    for plugin in plugins.chain([candle]) {
        let mut check = sppo();
        check.args(["plugin", "check"]).arg(&plugin).arg("--model").arg(&model);
        let output = check.output().unwrap();
        require_success(&output);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.lines().count() >= 8 && !text.contains("FAILED"), "{text}");
    }
}

#[test]
fn a_bad_plugin_does_not_conform() {
    let misbehaving = library("sppo-zoo-misbehaving");
    for (behaviour, told) in [
        ("not-a-number", "FAILED  verdicts have the right number and shape"),
        ("wrong-length", "FAILED  many comparisons at once"),
        ("panic-in-call", "I have no opinion"),
    ] {
        let mut check = sppo();
        check.args(["plugin", "check"]).arg(&misbehaving);
        check.args(["--set", &format!("oracle.misbehaving.behaviour={behaviour}")]);
        let output = check.output().unwrap();
        assert_eq!(output.status.code(), Some(PLUGIN));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(told), "{text}");
    }
}

#[test]
fn a_mixture_asks_oracles_from_libraries_and_the_run_records_them() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = small_run(directory.path(), "mixed");
    run.args(["--oracle", "mixture", "--plugin"]).arg(library("oracle-template"));
    run.args(["--set", "oracle.mixture.weights={rules = 1.0, oracle-template = 3.0}"]);
    require_success(&run.output().unwrap());
    let identity = recorded(&directory.path().join("mixed"));
    let names: Vec<_> = identity["plugins"]
        .as_array()
        .unwrap()
        .iter()
        .map(|plugin| (plugin["name"].as_str().unwrap().to_owned(), plugin["sha256"].is_string()))
        .collect();
    let expected =
        [("candle", false), ("mixture", false), ("oracle-template", true), ("rules", false)];
    assert_eq!(names, expected.map(|(name, hashed)| (name.to_owned(), hashed)));
}

//! Bad plugins. Each is an error that fits a screen and names the plugin and the remedy, and the
//! program survives it.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sppo_core::plugin::abi::INTERFACE_VERSION_TEXT;
use support::{library, sppo};
use tempfile::TempDir;

/// Lines and columns of a small terminal.
const SCREEN: (usize, usize) = (24, 100);

/// Four candidates to each of two prompts, and a place for libraries.
struct Zoo(TempDir);

impl Zoo {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let line = r#"{"prompt": "Which?", "candidates": ["this", "that", "neither"]}"#;
        fs::write(directory.path().join("candidates.jsonl"), format!("{line}\n{line}\n")).unwrap();
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `sppo rank` with the oracle of a library.
    fn rank(&self, library: &Path, oracle: &str) -> Command {
        let mut command = sppo();
        command.arg("rank").arg(self.path("candidates.jsonl")).arg("--plugin").arg(library);
        command.args(["--oracle", oracle]);
        command
    }

    fn behaving(&self, behaviour: &str) -> Command {
        let mut command = self.rank(&library("sppo-zoo-misbehaving"), "misbehaving");
        command.args(["--set", &format!("oracle.misbehaving.behaviour={behaviour}")]);
        command
    }

    /// A copy of the well-behaved library with bytes changed, every time they occur.
    fn altered(&self, name: &str, from: &[u8], to: &[u8]) -> PathBuf {
        assert_eq!(from.len(), to.len());
        let mut bytes = fs::read(library("sppo-zoo-misbehaving")).unwrap();
        let mut found = 0;
        for at in 0..bytes.len() - from.len() {
            if &bytes[at..at + from.len()] == from {
                bytes[at..at + to.len()].copy_from_slice(to);
                found += 1;
            }
        }
        assert!(found > 0, "{} is not in the library", String::from_utf8_lossy(from));
        self.write(name, &bytes)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

fn stderr_of(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The command fails by itself (not by a signal), says all of this, and gives a hint.
fn refused(command: &mut Command, told: &[&str]) -> String {
    let output = command.output().unwrap();
    let text = stderr_of(&output);
    assert!(matches!(output.status.code(), Some(code) if code != 0), "{}\n{text}", output.status);
    assert!(text.contains("hint: "), "no remedy in\n{text}");
    for part in told {
        assert!(text.contains(part), "`{part}` is not in\n{text}");
    }
    let lines: usize = text.lines().map(|line| 1 + line.chars().count() / SCREEN.1).sum();
    assert!(lines <= SCREEN.0, "{lines} lines are more than a screen:\n{text}");
    text
}

/// `sppo plugin list` names the trouble too, and still lists the rest.
fn listed_as_unusable(library: &Path, told: &str) {
    let output = sppo().args(["plugin", "list", "--plugin"]).arg(library).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("rules"), "{text}");
    assert!(text.contains("unusable") && text.contains(told), "`{told}` is not in\n{text}");
}

#[test]
fn other_interface_versions_are_refused_in_a_sentence() {
    let zoo = Zoo::new();
    let versions = [("0", "rebuild the plugin"), ("9", "update sppo")];
    for (version, remedy) in versions {
        let of_version = |version: &str| format!("manifest\ninterface={version}\n").into_bytes();
        let (from, to) = (of_version(INTERFACE_VERSION_TEXT), of_version(version));
        let library = zoo.altered(&format!("v{version}.so"), &from, &to);
        let built = format!("was built for plugin interface {version}");
        refused(&mut zoo.rank(&library, "misbehaving"), &["`misbehaving`", &built, remedy]);
        listed_as_unusable(&library, &built);
    }
}

#[test]
fn another_layout_is_summarised_and_the_details_are_kept() {
    let zoo = Zoo::new();
    let mut rank = zoo.rank(&library("sppo-zoo-extra-field"), "extra-field");
    rank.env("TMPDIR", zoo.0.path());
    let text = refused(&mut rank, &["`extra-field`", "lays out its data differently", "rebuild"]);
    let report = text.split_whitespace().find(|word| word.contains("sppo-plugin-layout-")).unwrap();
    let report = fs::read_to_string(report).unwrap();
    // The comparison ends at the outermost difference, which here is the crate that the type is from.
    for part in ["PluginModule", "sppo-zoo-extra-field"] {
        assert!(report.contains(part), "the report does not name {part}:\n{report}");
    }
}

#[test]
fn a_manifest_without_functions_or_with_another_name_is_refused() {
    let zoo = Zoo::new();
    let library = zoo.altered("gone.so", b"sppo_plugin_module.", b"sppo_plugin_nodule.");
    refused(&mut zoo.rank(&library, "misbehaving"), &["`misbehaving`", "does not export"]);
    let library = zoo.altered("other.so", b"\nname=misbehaving\n", b"\nname=wellbehaved\n");
    let told = ["`wellbehaved` in its manifest", "`misbehaving`", "build it again"];
    refused(
        &mut zoo.rank(&library, "wellbehaved"),
        &["oracle `wellbehaved`", "in its code", told[2]],
    );
}

#[test]
fn files_that_are_no_plugins_are_refused_unopened() {
    let zoo = Zoo::new();
    let whole = fs::read(library("sppo-zoo-misbehaving")).unwrap();
    let text = zoo.write("text.so", b"I am a text.\n");
    let short = zoo.write("short.so", &whole[..whole.len() / 2]);
    fs::create_dir(zoo.path("directory.so")).unwrap();
    let cases = [
        (text, "is not a shared library"),
        (short, "is damaged or cut short"),
        (zoo.path("directory.so"), "is a directory"),
        (zoo.path("absent.so"), "cannot be read"),
    ];
    for (file, told) in cases {
        let name = file.file_name().unwrap().to_str().unwrap();
        refused(&mut zoo.rank(&file, "misbehaving"), &[name, told]);
        listed_as_unusable(&file, told);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_library_for_another_processor_is_refused() {
    /// Where an ELF file names its processor, and the number of one that is rare.
    const MACHINE: usize = 18;
    const SPARC_V9: u8 = 43;
    let zoo = Zoo::new();
    let mut bytes = fs::read(library("sppo-zoo-misbehaving")).unwrap();
    bytes[MACHINE] = SPARC_V9;
    let library = zoo.write("foreign.so", &bytes);
    refused(&mut zoo.rank(&library, "misbehaving"), &["foreign.so", "another processor"]);
}

#[test]
fn the_constructor_of_an_unrelated_library_does_not_run() {
    let zoo = Zoo::new();
    let trace = zoo.path("trace");
    let unrelated = library("sppo-zoo-unrelated");
    let mut rank = zoo.rank(&unrelated, "misbehaving");
    refused(rank.env("SPPO_ZOO_TRACE", &trace), &["unrelated", "not an sppo plugin"]);
    let mut list = sppo();
    list.args(["plugin", "list"]).env("SPPO_PLUGIN_PATH", unrelated.parent().unwrap());
    assert!(list.env("SPPO_ZOO_TRACE", &trace).output().unwrap().status.success());
    assert!(!trace.exists(), "the library was opened");
}

#[cfg(unix)]
#[test]
fn a_library_that_everyone_may_change_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let zoo = Zoo::new();
    let library = zoo.write("open.so", &fs::read(library("sppo-zoo-misbehaving")).unwrap());
    fs::set_permissions(&library, fs::Permissions::from_mode(0o666)).unwrap();
    refused(&mut zoo.rank(&library, "misbehaving"), &["open.so", "every user", "chmod o-w"]);
}

#[test]
fn panics_become_errors_with_their_message_and_place() {
    let zoo = Zoo::new();
    let cases = [
        ("panic-while-made", "I cannot be made"),
        ("panic-in-call", "I have no opinion"),
        ("panic-on-thread", "it panicked"),
    ];
    for (behaviour, message) in cases {
        let told = ["oracle `misbehaving`", message, "report it to its author"];
        let text = refused(&mut zoo.behaving(behaviour), &told);
        assert!(!text.contains("RUST_BACKTRACE"), "the plugin printed by itself:\n{text}");
    }
    let output = zoo.behaving("panic-in-drop").output().unwrap();
    let text = stderr_of(&output);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("oracle `misbehaving`") && text.contains("I do not want to go"),
        "{text}"
    );
}

#[test]
fn senseless_verdicts_are_refused() {
    let zoo = Zoo::new();
    for behaviour in ["not-a-number", "out-of-range", "wrong-length", "wrong-shape"] {
        let mut rank = zoo.behaving(behaviour);
        let output = rank.output().unwrap();
        let text = stderr_of(&output);
        assert!(!output.status.success() && text.contains("oracle `misbehaving`"), "{text}");
        assert!(output.stdout.is_empty(), "{behaviour} led to data");
    }
}

#[test]
fn what_a_plugin_prints_does_not_spoil_the_data() {
    let zoo = Zoo::new();
    let output = zoo.behaving("printing").output().unwrap();
    assert!(output.status.success());
    let data = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(data.lines().all(|line| line.starts_with('{')) && data.lines().count() == 2, "{data}");
    assert!(stderr_of(&output).contains("I talk to standard output"));
}

#[test]
fn log_lines_come_at_their_level_under_the_plugin_s_name() {
    let zoo = Zoo::new();
    let logged = |level: &[&str]| stderr_of(&zoo.behaving("logging").args(level).output().unwrap());
    let quiet = logged(&[]);
    assert!(quiet.contains("error: oracle `misbehaving`: something is on fire\n"), "{quiet}");
    assert!(
        quiet.contains("warning: oracle `misbehaving`: it is getting hot degrees=40\n"),
        "{quiet}"
    );
    assert!(!quiet.contains("it is warm"), "{quiet}");
    let chatty = logged(&["-vv"]);
    assert!(chatty.contains("info: oracle `misbehaving`: it is warm\n"), "{chatty}");
    assert!(chatty.contains("molecules are moving"), "{chatty}");
}

#[cfg(unix)]
#[test]
fn a_call_that_never_returns_can_be_stopped() {
    use support::{Running, Said};

    let zoo = Zoo::new();
    let interrupted = |behaviour: &str| {
        let mut running = Running::start(&mut zoo.behaving(behaviour));
        let mut said = Said::by(&mut running);
        said.wait_for("I have begun");
        running.interrupt();
        (running, said)
    };
    let (mut running, said) = interrupted("endless");
    let code = running.end().code();
    assert_eq!(code, Some(130), "{}", said.everything());

    let (mut running, mut said) = interrupted("endless-and-deaf");
    said.wait_for("still waiting: oracle `misbehaving` does not ask whether it should stop");
    running.interrupt();
    let code = running.end().code();
    assert_eq!(code, Some(130), "{}", said.everything());
}

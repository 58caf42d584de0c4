use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::config::Config;
use crate::error::ErrorCategory;

fn identity() -> RunIdentity {
    RunIdentity {
        prompts_sha256: "11".into(),
        config: Config::default(),
        model: ModelIdentity { name: "tiny".into(), sha256: "ab".into(), ..Default::default() },
        plugins: vec![PluginIdentity {
            kind: "backend".into(),
            name: "candle".into(),
            version: "0.1.0".into(),
            sha256: None,
            identity: None,
        }],
    }
}

fn shard() -> ArtifactName {
    ArtifactName::new("iteration-1/rollouts/shard-0000.jsonl")
}

fn state() -> ArtifactName {
    ArtifactName::new("iteration-1/training-state")
}

fn write(content: &'static str) -> impl FnOnce(&Path) -> Result<()> {
    move |path| {
        fs::write(path, content).unwrap();
        Ok(())
    }
}

fn write_directory(content: &'static str) -> impl FnOnce(&Path) -> Result<()> {
    move |path| {
        fs::create_dir_all(path.join("model")).unwrap();
        fs::write(path.join("model/weights"), content).unwrap();
        fs::write(path.join("progress.json"), "{}").unwrap();
        Ok(())
    }
}

struct Fixture {
    _temporary: tempfile::TempDir,
    path: PathBuf,
}

/// A run with a file and a directory, closed again.
fn finished() -> Fixture {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("runs/first");
    let mut run = RunDirectory::create(&path, identity()).unwrap();
    run.commit(&shard(), write("rows")).unwrap();
    run.commit(&state(), write_directory("step 1")).unwrap();
    Fixture { _temporary: temporary, path }
}

fn resume(fixture: &Fixture) -> RunDirectory {
    RunDirectory::resume(&fixture.path, identity(), &[]).unwrap()
}

fn weights(run: &RunDirectory) -> String {
    fs::read_to_string(run.path(&state()).unwrap().join("model/weights")).unwrap()
}

#[test]
fn what_was_committed_is_there_after_resuming() {
    let fixture = finished();
    let run = resume(&fixture);
    assert_eq!(run.set_aside(), []);
    assert_eq!(fs::read_to_string(run.path(&shard()).unwrap()).unwrap(), "rows");
    assert_eq!(weights(&run), "step 1");
    assert_eq!(run.artifacts().collect::<Vec<_>>(), [&shard(), &state()]);
    assert_eq!(RunDirectory::read_identity(&fixture.path).unwrap(), identity());
}

#[test]
fn a_failing_writer_leaves_the_old_artefact_and_no_litter() {
    let fixture = finished();
    let mut run = resume(&fixture);
    let error = run
        .commit(&state(), |path| {
            fs::create_dir(path).unwrap();
            Err(Error::input(path.join("model"), "the disk is full"))
        })
        .unwrap_err();
    assert_eq!(error.category(), ErrorCategory::RunDirectory);
    assert_eq!(weights(&run), "step 1");
    assert_eq!(fs::read_dir(fixture.path.join("iteration-1")).unwrap().count(), 2);
}

/// The moments at which a process can be killed while it commits: each is a state of the disk.
#[test]
fn killed_before_the_manifest_means_never_made() {
    let fixture = finished();
    let directory = fixture.path.join("iteration-1");
    // While writing the first of its kind, and after the rename.
    fs::write(directory.join(".partial-training-set.jsonl"), "hal").unwrap();
    fs::write(directory.join("held-out.jsonl"), "complete").unwrap();
    // While replacing a directory: the new one is in place, its manifest is not.
    fs::rename(directory.join("training-state"), directory.join(".previous-training-state"))
        .unwrap();
    write_directory("step 2")(&directory.join("training-state")).unwrap();

    let mut run = resume(&fixture);
    assert_eq!(run.set_aside(), []);
    let held_out = ArtifactName::new("iteration-1/held-out.jsonl");
    assert!(!run.has(&held_out));
    assert!(run.path(&held_out).is_err());
    assert_eq!(weights(&run), "step 1");
    assert!(!directory.join(".partial-training-set.jsonl").exists());
    assert!(!directory.join(".previous-training-state").exists());

    run.commit(&held_out, write("made anew")).unwrap();
    run.commit(&state(), write_directory("step 2")).unwrap();
    drop(run);
    let run = resume(&fixture);
    assert_eq!(fs::read_to_string(run.path(&held_out).unwrap()).unwrap(), "made anew");
    assert_eq!(weights(&run), "step 2");
}

/// Killed between the two renames of a replacement: only the old one is left, under its other name.
#[test]
fn killed_between_the_renames_goes_back_to_the_old_artefact() {
    let fixture = finished();
    let directory = fixture.path.join("iteration-1");
    fs::rename(directory.join("training-state"), directory.join(".previous-training-state"))
        .unwrap();
    write_directory("step 2")(&directory.join(".partial-training-state")).unwrap();
    let run = resume(&fixture);
    assert_eq!(run.set_aside(), []);
    assert_eq!(weights(&run), "step 1");
}

/// A process of its own commits as fast as it can and is killed, again and again.
#[test]
fn killed_at_any_moment_nothing_committed_is_lost() {
    const WORKER: &str = "SPPO_TEST_COMMIT_UNTIL_KILLED";
    const THIS: &str = "run_directory::tests::killed_at_any_moment_nothing_committed_is_lost";
    if let Some(path) = std::env::var_os(WORKER) {
        commit_until_killed(Path::new(&path));
    }
    let fixture = finished();
    let manifest = fixture.path.join("manifests/iteration-1/training-state.json");
    let mut reached = 1;
    for round in 0..12 {
        let before = fs::read(&manifest).unwrap();
        let mut worker = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", THIS])
            .env(WORKER, &fixture.path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while fs::read(&manifest).unwrap() == before {
            assert!(Instant::now() < deadline, "the worker commits nothing");
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_micros(700 * round));
        worker.kill().unwrap();
        worker.wait().unwrap();

        let run = resume(&fixture);
        assert_eq!(run.set_aside(), []);
        let step = step_of(&run);
        assert!(step > reached, "{step} after {reached}");
        reached = step;
    }
}

fn step_of(run: &RunDirectory) -> u64 {
    weights(run).strip_prefix("step ").unwrap().parse().unwrap()
}

fn commit_until_killed(path: &Path) -> ! {
    let mut run = RunDirectory::resume(path, identity(), &[]).unwrap();
    let mut step = step_of(&run);
    loop {
        step += 1;
        let content: &'static str = format!("step {step}").leak();
        run.commit(&state(), write_directory(content)).unwrap();
        run.commit(&shard(), write(content)).unwrap();
        if step.is_multiple_of(3) {
            run.remove(&shard()).unwrap();
        }
    }
}

#[test]
fn altered_artefacts_are_named_and_set_aside() {
    type Tamper = fn(&Path);
    let cases: [(Tamper, &str, bool); 6] = [
        (
            |run| fs::write(run.join("iteration-1/rollouts/shard-0000.jsonl"), "rowz").unwrap(),
            "altered",
            true,
        ),
        (
            |run| fs::write(run.join("iteration-1/rollouts/shard-0000.jsonl"), "ro").unwrap(),
            "2 bytes in place of 4",
            true,
        ),
        (
            |run| fs::remove_file(run.join("iteration-1/rollouts/shard-0000.jsonl")).unwrap(),
            "missing",
            false,
        ),
        (
            |run| fs::remove_file(run.join("iteration-1/training-state/model/weights")).unwrap(),
            "`model/weights` is missing",
            true,
        ),
        (
            |run| fs::write(run.join("iteration-1/training-state/model/more"), "x").unwrap(),
            "`model/more` was added",
            true,
        ),
        (
            |run| fs::write(run.join("manifests/iteration-1/training-state.json"), "{").unwrap(),
            "manifest is damaged",
            true,
        ),
    ];
    for (tamper, reason, moved) in cases {
        let fixture = finished();
        tamper(&fixture.path);
        let mut run = resume(&fixture);
        let [fault] = run.set_aside() else { panic!("{reason}: {:?}", run.set_aside()) };
        let fault = fault.clone();
        assert!(fault.to_string().contains(reason), "{fault}");
        assert!(!run.has(&fault.name));
        assert_eq!(fault.moved_to.is_some_and(|path| path.exists()), moved, "{reason}");

        run.commit(&fault.name, write("again")).unwrap();
        drop(run);
        let run = resume(&fixture);
        assert!(run.set_aside().is_empty() && run.has(&fault.name));
    }
}

#[test]
fn removed_artefacts_stay_removed() {
    let fixture = finished();
    let mut run = resume(&fixture);
    run.remove(&state()).unwrap();
    run.remove(&state()).unwrap();
    assert!(!run.has(&state()) && !fixture.path.join("iteration-1/training-state").exists());
    drop(run);
    let run = resume(&fixture);
    assert!(run.set_aside().is_empty() && !run.has(&state()));
}

#[test]
fn a_second_process_is_refused_and_told_who_works_here() {
    let fixture = finished();
    let first = resume(&fixture);
    let error = RunDirectory::resume(&fixture.path, identity(), &[]).unwrap_err();
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    let error = RunDirectory::create(&fixture.path, identity()).unwrap_err();
    assert!(error.to_string().contains("is working on this run"), "{error}");
    drop(first);
    resume(&fixture);
}

#[test]
fn names_in_use_and_foreign_directories_are_refused() {
    let fixture = finished();
    let error = RunDirectory::create(&fixture.path, identity()).unwrap_err();
    assert!(error.hint().unwrap().contains("--resume"), "{error}");

    let foreign = tempfile::tempdir().unwrap();
    fs::write(foreign.path().join("thesis.tex"), "x").unwrap();
    let error = RunDirectory::create(foreign.path(), identity()).unwrap_err();
    assert!(error.to_string().contains("not a run of sppo"), "{error}");
    assert_eq!(fs::read_dir(foreign.path()).unwrap().count(), 1);

    let error = RunDirectory::resume(foreign.path(), identity(), &[]).unwrap_err();
    assert!(error.to_string().contains("no run to resume"), "{error}");

    let beneath_a_file = foreign.path().join("thesis.tex/run");
    let error = RunDirectory::create(beneath_a_file, identity()).unwrap_err();
    assert_eq!(error.category(), ErrorCategory::RunDirectory);
    assert!(error.hint().is_some(), "{error}");
}

#[test]
fn a_changed_run_is_refused_unless_the_change_is_allowed() {
    let fixture = finished();
    let mut changed = identity();
    changed.config.training.eta = 10.0;
    changed.config.evaluation.samples_per_prompt = 4;
    changed.model.sha256 = "cd".into();
    changed.plugins[0].version = "0.2.0".into();
    let allow = ["evaluation".to_owned()];
    let error = RunDirectory::resume(&fixture.path, changed.clone(), &allow).unwrap_err();
    let message = error.to_string();
    for line in [
        "\n  training.eta: 1000.0 -> 10.0",
        "\n  model.sha256: \"ab\" -> \"cd\"",
        "\n  plugin.backend.version: \"0.1.0\" -> \"0.2.0\"",
    ] {
        assert!(message.contains(line), "{message}");
    }
    assert!(!message.contains("evaluation"), "{message}");

    let mut longer = identity();
    longer.config.iterations = 5;
    let run = RunDirectory::resume(&fixture.path, longer.clone(), &["iterations".into()]).unwrap();
    drop(run);
    assert_eq!(RunDirectory::read_identity(&fixture.path).unwrap(), longer);
}

#[test]
fn a_run_of_a_version_that_lacked_a_setting_goes_on_with_its_default() {
    let fixture = finished();
    let record = fixture.path.join("run.json");
    let mut older: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    older["config"]["sampling"].as_object_mut().unwrap().remove("min_p").unwrap();
    std::fs::write(&record, older.to_string()).unwrap();

    let mut changed = identity();
    changed.config.sampling.min_p = 0.25;
    let error = RunDirectory::resume(&fixture.path, changed, &[]).unwrap_err().to_string();
    assert!(error.contains("\n  sampling.min_p: not set -> 0.25"), "{error}");
    RunDirectory::resume(&fixture.path, identity(), &[]).unwrap();
}

#[test]
fn artefacts_cannot_leave_the_run() {
    let fixture = finished();
    let mut run = resume(&fixture);
    for name in ["../outside", "/tmp/x", "a//b", "run.json", "manifests/x", ""] {
        assert!(run.commit(&ArtifactName::new(name), write("x")).is_err(), "{name}");
    }
}

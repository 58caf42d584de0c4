//! Cards of a run with and without results, adapters and a known base.

use super::*;
use crate::config::Config;
use crate::run_directory::{ModelIdentity, PluginIdentity};
use crate::statistics::Interval;

fn plugin(kind: &str, name: &str) -> PluginIdentity {
    PluginIdentity {
        kind: kind.into(),
        name: name.into(),
        version: "0.1.0".into(),
        sha256: None,
        identity: Some("model at https://secret.example:8443".into()),
    }
}

fn identity() -> RunIdentity {
    let mut config = Config { name: "mine".into(), ..Config::default() };
    config.run_directory = "/home/somebody/runs".into();
    config.prompts.train = Some("/home/somebody/questions.jsonl".into());
    RunIdentity {
        config,
        model: ModelIdentity {
            name: "/home/somebody/llama".into(),
            sha256: "ab12".into(),
            ..ModelIdentity::default()
        },
        prompts_sha256: "cd34".into(),
        plugins: vec![plugin("backend", "candle"), plugin("oracle", "rules")],
    }
}

fn report(iteration: u32, mean: f64) -> IterationReport {
    let mut report = IterationReport::new(iteration, "/home/somebody/runs/mine".into());
    report.win_rate = Some(Interval { mean, low: mean - 0.05, high: mean + 0.05 });
    report.chosen_log_prob_change = Some(1.5);
    report.rejected_log_prob_change = Some(-2.25);
    report.examples = 40;
    report.seconds = 12.5;
    report
}

fn card(identity: &RunIdentity, reports: &[IterationReport], publication: Publication) -> String {
    ModelCard { identity, iteration: 2, reports, publication }.render()
}

#[test]
fn a_card_says_what_the_run_knows_and_nothing_of_the_machine() {
    let identity = identity();
    let text = card(&identity, &[report(1, 0.6)], Publication::default());
    for part in [
        "---\nlibrary_name: transformers\nmodel_name: mine\npipeline_tag: text-generation\n\
         tags: [generated_from_trainer, sppo, sppo-rs, preference-optimization]\n---\n\n# mine\n",
        "a local model, `llama`",
        "iteration 2 of 3, judged by the oracle `rules` 0.1.0",
        "| 1 | 60.0 % | 55.0 % to 65.0 % | - | +1.50 | -2.25 | 40 |",
        "written before its own iteration was measured",
        "| `training.learning_rate` | 5e-7 |",
        "SHA-256 of the prompts: `cd34`",
        "2405.00675",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    for part in ["somebody", "secret", "12.5"] {
        assert!(!text.contains(part), "`{part}` in\n{text}");
    }
}

#[test]
fn a_published_card_is_complete() {
    let mut identity = identity();
    identity.model.hub_id = Some("org/base".into());
    identity.model.license = Some("apache-2.0".into());
    identity.config.training.lora.rank = 8;
    let publication = Publication {
        repository: Some("me/mine".into()),
        datasets: vec!["openbmb/UltraFeedback".into()],
        picture: Some("win-rate.svg".into()),
        report_page: Some("report.html".into()),
        ..Publication::default()
    };
    let text = card(&identity, &[report(1, 0.6), report(2, 0.7)], publication);
    for part in [
        "---\nbase_model: org/base\nlibrary_name: peft\n",
        "license: apache-2.0\ndatasets: [openbmb/UltraFeedback]\n",
        "LoRA adapters for [org/base](https://huggingface.co/org/base)",
        "AutoPeftModelForCausalLM.from_pretrained(\"me/mine\")",
        "| 2 | 70.0 % | 65.0 % to 75.0 % |",
        "![Win rate against the starting model by iteration](win-rate.svg)",
        "[report.html](report.html)",
        "| `training.lora.rank` | 8 |",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    assert!(!text.contains("before its own iteration"), "{text}");
}

#[test]
fn names_that_yaml_would_read_as_something_else_are_quoted() {
    for (name, written) in
        [("no", "\"no\""), ("1e3", "\"1e3\""), ("a: b", "\"a: b\""), ("run-1", "run-1")]
    {
        let mut identity = identity();
        identity.config.name = name.into();
        let text = card(&identity, &[], Publication::default());
        assert!(text.contains(&format!("\nmodel_name: {written}\n")), "{text}");
    }
}

#[test]
fn the_licence_of_a_base_is_read_from_its_metadata_alone() {
    for (text, expected) in [
        ("---\ntags: [a]\nlicense: apache-2.0\n---\n", Some("apache-2.0")),
        ("---\r\nlicense: \"llama3.2\" # community\r\n---\r\n", Some("llama3.2")),
        ("---\nlicense:\n- mit\n---\n", None),
        ("---\ntags: []\n---\nlicense: mit\n", None),
        ("license: mit\n", None),
        ("", None),
    ] {
        assert_eq!(declared_license(text).as_deref(), expected, "{text}");
    }
}

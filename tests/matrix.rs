//! Every backend with every oracle and sampler, all from libraries: a small run through the program ends, and ends as
//! it does with the candle that is built in.
//!
//! The row of tch is skipped where its library was built without libtorch. That of burn builds burn, so it
//! is ignored unless asked for: `cargo test --release --test matrix -- --include-ignored`.

#[path = "support/rollout_server.rs"]
mod rollout_server;
#[path = "../oracle-http/tests/support/mod.rs"]
mod service;
mod support;

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use rollout_server::{Behaviour as ServerBehaviour, RolloutServer};
use serde_json::Value;
use service::{Behaviour, Service};
use support::{
    build_library, fixture, json_lines, library, read_json, reference_pairs, reference_sequences,
    require_success, small_run, sppo, stdout_of, tch_library,
};

/// A backend and its library; `None` where it cannot be built here.
#[derive(Clone, Copy)]
struct Backend {
    name: &'static str,
    library: &'static LazyLock<Option<PathBuf>>,
}

static CANDLE: LazyLock<Option<PathBuf>> = LazyLock::new(|| Some(library("sppo-backend-candle")));

static BURN: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let manifest = fixture("../plugins/backend-burn/Cargo.toml");
    Some(build_library(&manifest, "sppo-backend-burn"))
});

static TCH: LazyLock<Option<PathBuf>> = LazyLock::new(tch_library);

impl Backend {
    /// Chooses this backend for a command; `None` where it is not to be had.
    fn choose(self, command: &mut Command) -> Option<()> {
        let library = self.library.as_ref()?;
        command.args(["--backend", self.name, "--plugin"]).arg(library);
        Some(())
    }
}

/// An oracle, and how a command is told to use it.
#[derive(Clone, Copy)]
struct Oracle {
    name: &'static str,
    libraries: &'static [&'static str],
    /// Settings, of which one may ask the service.
    settings: fn(&Service) -> Vec<String>,
}

const RULES: Oracle =
    Oracle { name: "rules", libraries: &["sppo-oracle-rules"], settings: |_| Vec::new() };
const TEMPLATE: Oracle =
    Oracle { name: "oracle-template", libraries: &["oracle-template"], settings: |_| Vec::new() };
const MIXTURE: Oracle = Oracle {
    name: "mixture",
    libraries: &["sppo-oracle-mixture", "sppo-oracle-rules", "oracle-template"],
    settings: |_| vec!["oracle.mixture.weights={rules = 1.0, oracle-template = 3.0}".into()],
};
/// Its ranker is computed by the backend.
const PAIRRM: Oracle = Oracle {
    name: "pairrm",
    libraries: &["sppo-oracle-pairrm"],
    settings: |_| {
        vec![format!("oracle.pairrm.model='{}'", fixture("fixtures/pairrm-tiny").display())]
    },
};
/// Its scores are computed by the backend.
const REWARD: Oracle = Oracle {
    name: "reward",
    libraries: &["sppo-oracle-reward"],
    settings: |_| {
        vec![format!("oracle.reward.model='{}'", fixture("fixtures/reward/llama").display())]
    },
};
/// The policy judges itself, on the backend.
const JUDGE: Oracle = Oracle {
    name: "judge",
    libraries: &["sppo-oracle-judge"],
    settings: |_| {
        vec![
            format!(
                "oracle.judge.template_file='{}'",
                fixture("fixtures/judge/question.jinja").display()
            ),
            "oracle.judge.system=''".into(),
            // Labels mean nothing to a random model.
            "oracle.judge.min_label_probability=0".into(),
        ]
    },
};
const HTTP: Oracle = Oracle {
    name: "http",
    libraries: &["sppo-oracle-http"],
    settings: |service| {
        vec![
            format!("oracle.http.endpoints=[\"{}\"]", service.url()),
            "oracle.http.protocol=pairwise".into(),
            "oracle.http.cache.enabled=false".into(),
        ]
    },
};

/// One protocol of `http` for all others, which differ in what they send and not in what becomes of it.
const DECISIONS: Oracle = Oracle {
    name: "http",
    libraries: &["sppo-oracle-http"],
    settings: |service| {
        vec![
            format!("oracle.http.endpoints=[\"{}\"]", service.url()),
            "oracle.http.protocol=systemone".into(),
            "oracle.http.decision.scope=prompt".into(),
            "oracle.http.cache.enabled=false".into(),
        ]
    },
};

/// Every iteration of a small run, as the program reports it; `None` where the backend is not to be had.
fn run(backend: Option<Backend>, oracle: Oracle) -> Option<Vec<Value>> {
    run_with(backend, oracle, Sampler::Policy)
}

/// The source of the responses of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sampler {
    Policy,
    /// A server of ours, which speaks as vLLM does and computes with candle.
    Http,
}

/// As [`run`], with responses from this sampler.
fn run_with(backend: Option<Backend>, oracle: Oracle, sampler: Sampler) -> Option<Vec<Value>> {
    let directory = tempfile::tempdir().unwrap();
    let judge = Service::start(Behaviour::default());
    let mut command = small_run(directory.path(), "run");
    if let Some(backend) = backend {
        backend.choose(&mut command)?;
    }
    let server;
    if sampler == Sampler::Http {
        let model = fixture("fixtures/lm/llama");
        server = RolloutServer::start(&model, ServerBehaviour::default());
        command.args(["--sampler", "vllm", "--plugin"]).arg(library("sppo-sampler-http"));
        command.args(["--set", &format!("sampler.vllm.endpoints=[\"{}\"]", server.url())]);
    }
    command.args(["--oracle", oracle.name]);
    for name in oracle.libraries {
        command.arg("--plugin").arg(library(name));
    }
    for setting in (oracle.settings)(&judge) {
        command.args(["--set", &setting]);
    }
    let report: Value = serde_json::from_str(&stdout_of(&mut command)).unwrap();

    let identity = read_json(&directory.path().join("run/run.json"));
    let built_in: Vec<&str> = identity["plugins"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|plugin| !plugin["sha256"].is_string())
        .map(|plugin| plugin["name"].as_str().unwrap())
        .collect();
    let expected: &[&str] = if backend.is_some() { &[] } else { &["candle"] };
    assert_eq!(built_in, expected, "what does not come from a library");
    Some(report["iterations"].as_array().unwrap().clone())
}

/// How far a number of a report may be from what candle makes of it: tokens are sampled from the same
/// draws, so they are the same, and log-probabilities and a ranker's verdicts differ by rounding alone.
const NUMBERS: [(&str, f64); 6] = [
    ("/win_rate/mean", 1e-5),
    ("/mean_response_tokens", 1e-6),
    ("/ended_share", 1e-6),
    ("/examples", 1e-6),
    ("/chosen_log_prob_change", 2e-3),
    ("/rejected_log_prob_change", 2e-3),
];

fn a_run_ends_as_with_candle(backend: Backend, oracle: Oracle) {
    let Some(found) = run(Some(backend), oracle) else {
        return;
    };
    require_same_ends(&found, &run(None, oracle).unwrap());
}

fn a_served_run_ends_as_with_candle(backend: Backend) {
    let Some(found) = run_with(Some(backend), RULES, Sampler::Http) else {
        return;
    };
    let difference = found[2]["log_prob_difference"].as_f64().unwrap();
    assert!(difference < 1e-3, "the server's log-probabilities are off by {difference}");
    require_same_ends(&found, &run_with(None, RULES, Sampler::Http).unwrap());
}

fn require_same_ends(found: &[Value], expected: &[Value]) {
    assert_eq!((found.len(), expected.len()), (3, 3), "the start and two iterations");
    for (iteration, (found, expected)) in found.iter().zip(expected).enumerate() {
        for (number, tolerance) in NUMBERS {
            let [found, expected] =
                [found, expected].map(|of| of.pointer(number).and_then(Value::as_f64));
            let near = match (found, expected) {
                (Some(found), Some(expected)) => (found - expected).abs() <= tolerance,
                // Nothing is compared with the start, or learnt, at the start.
                (None, None) => iteration == 0,
                _ => false,
            };
            assert!(near, "{number} of iteration {iteration}: {found:?} is not {expected:?}");
        }
    }
    // Something was learnt from, or the comparison says little.
    assert!(expected[1]["examples"].as_u64().unwrap() > 0);
}

/// Loss, gradient norm and all log-probabilities after one step of the official loss; `None` where the
/// backend is not to be had.
fn step(backend: Option<Backend>) -> Option<(Vec<f64>, Vec<f64>)> {
    let model = fixture("fixtures/lm/llama");
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let pairs = reference_pairs(&read_json(&fixture("fixtures/optim-llama.json")));
    std::fs::write(at("pairs.jsonl"), pairs).unwrap();
    let mut train = sppo();
    train.arg("train").arg(at("pairs.jsonl")).arg("--output").arg(at("trained"));
    train.arg("--model").arg(&model);
    train.args(["--objective", "sppo", "--eta", "1000", "--learning-rate", "1e-4"]);
    train.args(["--schedule", "constant", "--warmup-ratio", "0", "--epochs", "1"]);
    train.args(["--global-batch-size", "4", "--micro-batch-tokens", "60"]);
    if let Some(backend) = backend {
        backend.choose(&mut train)?;
    }
    require_success(&train.output().unwrap());
    let metrics = std::fs::read_to_string(at("trained").join("metrics.jsonl")).unwrap();
    let step = json_lines(&metrics).into_iter().find(|entry| entry["loss"].is_number()).unwrap();

    std::fs::write(
        at("sequences.jsonl"),
        reference_sequences(&read_json(&model.join("golden.json"))),
    )
    .unwrap();
    let mut score = sppo();
    score.arg("score").arg(at("sequences.jsonl")).arg("--model").arg(at("trained"));
    if let Some(backend) = backend {
        backend.choose(&mut score)?;
    }
    let scored = json_lines(&stdout_of(&mut score));
    let log_probs = scored.iter().flat_map(|line| line["log_probs"].as_array().unwrap());
    let number = |value: &Value| value.as_f64().unwrap();
    let measured = ["loss", "gradient_norm"].map(|name| number(&step[name])).to_vec();
    Some((measured, log_probs.map(number).collect()))
}

fn a_training_step_is_that_of_candle(backend: Backend) {
    let Some((measured, log_probs)) = step(Some(backend)) else {
        return;
    };
    let (expected_measured, expected_log_probs) = step(None).unwrap();
    for (found, expected) in measured.iter().zip(&expected_measured) {
        assert!((found - expected).abs() <= 1e-4 * expected.abs(), "{found} is not {expected}");
    }
    assert_eq!(log_probs.len(), expected_log_probs.len());
    for (found, expected) in log_probs.iter().zip(&expected_log_probs) {
        assert!((found - expected).abs() <= 1e-4, "{found} is not {expected}");
    }
}

/// The tests of a backend, one for each oracle, and for each sampler but the policy.
macro_rules! row {
    ($backend:ident, $library:ident $(, #[$attribute:meta])?) => {
        mod $backend {
            use super::*;

            const BACKEND: Backend = Backend { name: stringify!($backend), library: &$library };

            #[test]
            $(#[$attribute])?
            fn rules() {
                a_run_ends_as_with_candle(BACKEND, RULES);
            }

            #[test]
            $(#[$attribute])?
            fn mixture() {
                a_run_ends_as_with_candle(BACKEND, MIXTURE);
            }

            #[test]
            $(#[$attribute])?
            fn template() {
                a_run_ends_as_with_candle(BACKEND, TEMPLATE);
            }

            #[test]
            $(#[$attribute])?
            fn pairrm() {
                a_run_ends_as_with_candle(BACKEND, PAIRRM);
            }

            #[test]
            $(#[$attribute])?
            fn reward() {
                a_run_ends_as_with_candle(BACKEND, REWARD);
            }

            #[test]
            $(#[$attribute])?
            fn judge() {
                a_run_ends_as_with_candle(BACKEND, JUDGE);
            }

            #[test]
            $(#[$attribute])?
            fn http() {
                a_run_ends_as_with_candle(BACKEND, HTTP);
            }

            #[test]
            $(#[$attribute])?
            fn sampler_http() {
                a_served_run_ends_as_with_candle(BACKEND);
            }

            #[test]
            $(#[$attribute])?
            fn training_step() {
                a_training_step_is_that_of_candle(BACKEND);
            }
        }
    };
}

#[test]
fn a_decision_model_judges_a_run() {
    a_run_ends_as_with_candle(Backend { name: "candle", library: &CANDLE }, DECISIONS);
}

row!(candle, CANDLE);
row!(burn, BURN, #[ignore = "builds burn, which takes minutes; .ci/run asks for it"]);
row!(tch, TCH);

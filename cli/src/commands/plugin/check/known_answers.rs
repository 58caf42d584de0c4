//! Outputs of the released PairRM on the examples of its model card.

use serde_json::Value;
use sppo_core::plugin::conformance::{Finding, Outcome};
use sppo_core::plugin::{Candidate, Comparison, Message, Oracle, Services, SilentHost, Verdict};

/// The oracle whose outputs are known.
pub(super) const ORACLE: &str = "pairrm";

const CHECK: &str = "the examples of PairRM's model card come out as there";

/// Beginning of the identity of the released weights.
const RELEASED: &str = "llm-blender/PairRM";

/// Largest error of bf16 and f16 backends.
const TOLERANCE: f32 = 0.05;

/// Prompt, two answers, and the logit that the first is better when it is shown first.
const LOGITS: [(&str, [&str; 2], f32); 2] = [
    ("hello!", ["hi!", "f**k off!"], 1.900_302_2),
    ("I love you!", ["I hate you!", "I love you, too!"], -1.254_713_4),
];

/// Prompt, three answers, and their order from best to worst.
const ORDERS: [(&str, [&str; 3], [usize; 3]); 2] = [
    ("hello, how are you!", ["get out!", "hi! I am fine, thanks!", "bye!"], [1, 2, 0]),
    ("I love you!", ["I love you too!", "I hate you!", "Thanks! You're a good guy!"], [0, 2, 1]),
];

/// Compares the oracle with them, if its model is the released one.
pub(super) fn check(
    create: &mut dyn FnMut(Value) -> Result<Box<dyn Oracle>, String>,
    mut settings: Value,
    services: &dyn Services,
) -> Finding {
    settings["prompt_view"] = "raw".into();
    settings["orders"] = "both".into();
    let outcome = create(settings).and_then(|mut oracle| {
        oracle.prepare(services, &SilentHost).map_err(|error| error.to_string())?;
        if !oracle.identity().is_some_and(|identity| identity.starts_with(RELEASED)) {
            return Ok(Outcome::Remark(format!(
                "not asked, because the model was not taken from {RELEASED} on the hub"
            )));
        }
        ask(oracle.as_mut()).map(|()| Outcome::Passed)
    });
    Finding { check: CHECK, outcome: outcome.unwrap_or_else(Outcome::Failed) }
}

fn ask(oracle: &mut dyn Oracle) -> Result<(), String> {
    for (prompt, answers, expected) in LOGITS {
        let logits = logits(oracle, prompt, &answers)?;
        let found = logits[1];
        if found.is_nan() || (found - expected).abs() > TOLERANCE {
            return Err(format!("the logit of `{prompt}` is {found}, not {expected}"));
        }
    }
    for (prompt, answers, expected) in ORDERS {
        let size = answers.len();
        let logits = logits(oracle, prompt, &answers)?;
        let score = |i: usize| -> f32 {
            (0..size).map(|j| logits[i * size + j] - logits[j * size + i]).sum()
        };
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
        if order != expected {
            return Err(format!(
                "the answers to `{prompt}` are ordered {order:?}, not {expected:?}"
            ));
        }
    }
    Ok(())
}

fn logits(oracle: &mut dyn Oracle, prompt: &str, answers: &[&str]) -> Result<Vec<f32>, String> {
    let comparison = Comparison {
        prompt: [Message::user(prompt)].into(),
        rendered_prompt: None,
        candidates: answers.iter().copied().map(Candidate::from_text).collect(),
    };
    let verdicts =
        oracle.preferences(&[comparison], &SilentHost).map_err(|error| error.to_string())?;
    match verdicts.into_iter().next() {
        Some(Verdict::Logits(logits)) if logits.len() == answers.len().pow(2) => Ok(logits),
        other => Err(format!("the verdict is {other:?}, not a table of logits")),
    }
}

//! The speed of the oracle, and of a model that it asks.

use std::cell::Cell;

use serde::Serialize;
use sppo_core::Result;
use sppo_core::observer::{Event, Observer, Observers, Stage};
use sppo_core::plugin::{Candidate, Comparison, Oracle, Policy, PolicyInfo};
use sppo_core::records::Prompt;
use sppo_core::session::{LentPolicy, Session};

use super::measure::{Machine, Rate, Workload, forward_flops, rate, repeat};

/// The speed of an oracle.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Judging {
    /// In prompts whose answers it compared.
    #[serde(flatten)]
    pub(super) prompts: Rate,
    /// Of a model that reads two answers with a question: in questions, and in tokens that it computed.
    pub(super) model: Option<[Rate; 2]>,
}

/// Each prompt with the answers to it, as text.
pub(super) fn comparisons<'a>(workload: &'a Workload, texts: &'a [String]) -> Vec<Comparison<'a>> {
    let answers = texts.chunks(workload.samples_per_prompt.max(1));
    let comparison = |(prompt, texts): (&'a Prompt, &'a [String])| Comparison {
        prompt: prompt.messages.as_slice().into(),
        rendered_prompt: None,
        candidates: texts.iter().map(Candidate::from_text).collect(),
    };
    workload.prompts.iter().zip(answers).map(comparison).collect()
}

/// Lets an oracle compare the answers to each prompt; the policy is lent to one that asks it.
///
/// # Errors
/// When the oracle fails.
pub(super) fn measure_judging(
    session: Session<'_>,
    oracle: &mut dyn Oracle,
    lent: &LentPolicy<'_>,
    policy: Box<dyn Policy>,
    comparisons: &[Comparison<'_>],
    repetitions: usize,
) -> Result<Judging> {
    let info = policy.info().clone();
    let work = ModelWork::default();
    let observers: [&dyn Observer; 2] = [session.observer, &work];
    let observer = Observers(&observers);
    let session = Session { observer: &observer, ..session };
    let meter = session.stage(Stage::Judge, comparisons.len() as u64, "prompts");
    // The products are known only where the policy judges.
    let machine = lent.is_wanted().then(|| Machine::of(session.backend, &info));
    let (_, timed) = lent.lend(policy, || {
        let judge = |_| session.preferences(&meter, oracle, comparisons, 0).map(drop);
        repeat(repetitions, machine.as_ref(), judge)
    });
    // One repetition is not timed.
    let [questions, tokens] = work.per_repetition(repetitions + 1);
    let timed = timed?;
    let flops = policy_flops(&info, lent, tokens, questions);
    let has_model = questions > 0.0 && tokens > 0.0;
    Ok(Judging {
        prompts: rate("prompts", comparisons.len() as f64, flops, &timed),
        model: has_model.then(|| {
            [("questions", questions), ("tokens", tokens)]
                .map(|(unit, count)| rate(unit, count, flops, &timed))
        }),
    })
}

/// Operations of the products with weights, where the policy judges: the shape of another model is not known here.
fn policy_flops(
    info: &PolicyInfo,
    lent: &LentPolicy<'_>,
    tokens: f64,
    questions: f64,
) -> Option<f64> {
    lent.is_wanted().then(|| forward_flops(info, tokens as usize, questions as usize))
}

/// Questions and tokens of a model that judges, as the oracle counts them.
#[derive(Debug, Default)]
struct ModelWork {
    questions: Cell<f64>,
    tokens: Cell<f64>,
}

impl ModelWork {
    fn per_repetition(&self, repetitions: usize) -> [f64; 2] {
        [&self.questions, &self.tokens].map(|total| total.get() / repetitions as f64)
    }
}

impl Observer for ModelWork {
    fn event(&self, event: Event<'_>) {
        let Event::StageMetrics(values) = event else { return };
        for &(name, value) in values {
            match name {
                "questions" => self.questions.set(value),
                "judge_tokens" => self.tokens.set(value),
                _ => {}
            }
        }
    }
}

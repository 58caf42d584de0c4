//! Held-out prompts with the answers of all models of a run.

use std::collections::BTreeMap;

use sppo_core::evaluation::win_rates;
use sppo_core::plugin::Conversation;
use sppo_core::records::{DuelVerdict, HeldOutDuels, Response, Rollout};
use sppo_core::statistics::{Duel, Duels};

/// A held-out prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeldOutPrompt {
    /// Its id.
    pub(crate) id: u64,
    /// The conversation.
    pub(crate) messages: Conversation,
    /// The answers by iteration (0 is the starting model) and sample.
    pub(crate) answers: Vec<Vec<Response>>,
    /// The duels with the starting model's answers, by iteration and sample; empty where they are not known.
    pub(crate) duels: Vec<Vec<DuelVerdict>>,
}

/// Answers of one model and the judgments on them.
#[derive(Clone, Debug, Default)]
pub(super) struct HeldOutPart {
    pub(super) rollouts: Vec<Rollout>,
    pub(super) judgments: Vec<HeldOutDuels>,
}

impl HeldOutPart {
    /// The duels with an earlier model's answers, by prompt; empty where they were not judged.
    pub(super) fn duels_with(&self, against: u32) -> Vec<Vec<DuelVerdict>> {
        let judged = self.judgments.iter().filter(|judgment| judgment.against == against);
        judged.map(HeldOutDuels::duels).collect()
    }

    /// The duels with the starting model's answers, with their differences in length; `None` where they were not
    /// judged.
    pub(super) fn with_lengths(&self, start: &Self) -> Option<Duels> {
        let lengths = |part: &Self| -> Vec<Vec<f64>> {
            let of_prompt = |rollout: &Rollout| {
                rollout
                    .responses
                    .iter()
                    .map(|response| response.text.chars().count() as f64)
                    .collect()
            };
            part.rollouts.iter().map(of_prompt).collect()
        };
        let (ours, theirs) = (lengths(self), lengths(start));
        let prompts = self.duels_with(0).into_iter().zip(ours.iter().zip(&theirs));
        let with_lengths =
            |(verdicts, (ours, theirs)): (Vec<DuelVerdict>, (&Vec<f64>, &Vec<f64>))| {
                let samples = verdicts.iter().zip(ours.iter().zip(theirs));
                samples
                    .map(|(verdict, (ours, theirs))| Duel {
                        win_rate: verdict.win_probability(),
                        length_difference: ours - theirs,
                    })
                    .collect()
            };
        Duels::new(vec![prompts.map(with_lengths).collect()])
    }

    /// The win rates against an earlier model, by prompt; `None` where they were not judged.
    pub(super) fn win_rates_against(&self, against: u32) -> Option<Vec<f64>> {
        let duels = self.duels_with(against);
        (!duels.is_empty()).then(|| win_rates(&duels))
    }
}

/// The prompts with all models' answers; the parts are those of the models, the starting model's first.
pub(super) fn prompts(parts: &[HeldOutPart]) -> Vec<HeldOutPrompt> {
    let Some(start) = parts.first() else { return Vec::new() };
    let verdicts: Vec<BTreeMap<u64, Vec<DuelVerdict>>> = parts
        .iter()
        .map(|part| {
            let judged = part.judgments.iter().filter(|judgment| judgment.against == 0);
            judged.map(|judgment| (judgment.prompt_id, judgment.duels())).collect()
        })
        .collect();
    let prompt = |(index, rollout): (usize, &Rollout)| HeldOutPrompt {
        id: rollout.prompt.id,
        messages: rollout.prompt.messages.clone(),
        answers: parts
            .iter()
            .map(|part| part.rollouts.get(index).map_or_else(Vec::new, |own| own.responses.clone()))
            .collect(),
        duels: verdicts
            .iter()
            .map(|of_model| of_model.get(&rollout.prompt.id).cloned().unwrap_or_default())
            .collect(),
    };
    start.rollouts.iter().enumerate().map(prompt).collect()
}

/// Win rate of each model against each other, from the judgments that there are: the mean over prompts.
pub(super) fn matrix(parts: &[HeldOutPart]) -> Vec<Vec<Option<f64>>> {
    let mut matrix = vec![vec![None; parts.len()]; parts.len()];
    let pairs = (0..parts.len()).flat_map(|later| (0..later).map(move |earlier| (later, earlier)));
    for (later, earlier) in pairs {
        if let Some(win_rates) = parts[later].win_rates_against(earlier as u32) {
            let mean = win_rates.iter().sum::<f64>() / win_rates.len() as f64;
            matrix[later][earlier] = Some(mean);
            matrix[earlier][later] = Some(1.0 - mean);
        }
    }
    matrix
}

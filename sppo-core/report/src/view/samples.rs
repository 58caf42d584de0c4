//! Held-out answers, side by side.

use sppo_core::plugin::FinishReason;
use sppo_core::records::Response;

use super::iteration_name;
use crate::page::{Answer, Block, SamplePrompt, SampleSet, SampleVerdict, Samples, Section, Turn};
use crate::run::{HeldOutPrompt, RunReport};

/// Most bytes of text of one run; further prompts are left out.
const MOST_TEXT: usize = 4 << 20;

/// The answers of the start and of each iteration, with the verdicts in both orders.
pub(super) fn section(runs: &[RunReport]) -> Section {
    let section = Section::new("samples", "Answers side by side");
    let sets: Vec<SampleSet> =
        runs.iter().filter(|run| !run.held_out.is_empty()).map(sample_set).collect();
    match sets.is_empty() {
        true => section,
        false => section.block(Block::Samples(Samples { sets })),
    }
}

fn sample_set(run: &RunReport) -> SampleSet {
    let mut text = 0;
    let mut prompts = Vec::with_capacity(run.held_out.len());
    for prompt in &run.held_out {
        text += text_bytes(prompt);
        // One prompt is always shown.
        if text > MOST_TEXT && !prompts.is_empty() {
            break;
        }
        prompts.push(sample_prompt(prompt));
    }
    SampleSet {
        name: run.name.clone(),
        models: (0..run.iterations.len() as u32).map(iteration_name).collect(),
        left_out: run.held_out.len() - prompts.len(),
        prompts,
    }
}

fn text_bytes(prompt: &HeldOutPrompt) -> usize {
    let turns: usize = prompt.messages.iter().map(|message| message.content.len()).sum();
    let answers = prompt.answers.iter().flatten().map(|answer| answer.text.len());
    turns + answers.sum::<usize>()
}

fn sample_prompt(prompt: &HeldOutPrompt) -> SamplePrompt {
    let turns = prompt
        .messages
        .iter()
        .map(|message| Turn { role: message.role.to_string(), text: message.content.to_string() });
    let answer = |response: &Response| Answer {
        text: response.text.clone(),
        tokens: response.tokens.len(),
        ended: response.finish_reason == FinishReason::Stop,
    };
    SamplePrompt {
        id: prompt.id,
        turns: turns.collect(),
        answers: prompt.answers.iter().map(|of| of.iter().map(answer).collect()).collect(),
        verdicts: prompt
            .duels
            .iter()
            .map(|of_model| {
                let verdict = |duel: &sppo_core::records::DuelVerdict| SampleVerdict {
                    read_first: duel.read_first,
                    read_second: duel.read_second,
                };
                of_model.iter().map(verdict).collect()
            })
            .collect(),
    }
}

//! The page of a game.

use sppo_core::game::{AlgorithmPlay, GameRecord};
use sppo_core::preference::PreferenceMatrix;

use crate::page::{Axis, Block, Column, Format, Heatmap, Lines, Page, Section, Series, Table};

/// Most answers whose weights are drawn as lines, or shown as a matrix.
const MOST_ANSWERS: usize = 12;

/// The page of a game that was played with this matrix and eta: the gaps beside the theorem's bound, and the
/// policies; and the gaps of other algorithms that played the same game.
#[must_use]
pub fn game_page(
    name: &str,
    matrix: &PreferenceMatrix,
    eta: f64,
    rounds: &[GameRecord],
    others: &[AlgorithmPlay],
) -> Page {
    let sentence = match rounds.last() {
        Some(last) => format!(
            "After {} iterations the mixture of all policies is {:.6} away from the equilibrium; the theorem \
             promises {:.6}.",
            last.iteration, last.mixture_gap, last.bound
        ),
        None => "No iteration was played.".into(),
    };
    let mut page = Page::new(name, sentence);
    page.facts = vec![format!("{} answers", matrix.size()), format!("eta {eta:.4}")];
    let drawn: Vec<&GameRecord> = drawn_rounds(rounds.len()).map(|index| &rounds[index]).collect();
    let gaps = Section::new("gaps", "Duality gap")
        .note(
            "Distance from the equilibrium: the most that any answer can win against a policy, above one half, \
             and the most that the policy can lose.",
        )
        .block(Block::Lines(gaps(&drawn, others)));
    let mut policy = Section::new("policy", "Policy");
    if matrix.size() <= MOST_ANSWERS {
        policy = policy.block(Block::Lines(policies(&drawn, matrix.size())));
    }
    let mut answers = Section::new("preferences", "Preferences");
    if matrix.size() <= MOST_ANSWERS {
        answers = answers.block(Block::Heatmap(preferences(matrix)));
    }
    page.section(gaps)
        .section(policy)
        .section(answers)
        .section(Section::new("rounds", "Rounds").block(Block::Table(table(rounds))))
}

fn gaps(rounds: &[&GameRecord], others: &[AlgorithmPlay]) -> Lines {
    let series = |name: &str, color, dashed, of: fn(&GameRecord) -> f64| Series {
        name: name.into(),
        color,
        dashed,
        x: rounds.iter().map(|round| round.iteration as f64).collect(),
        // A logarithmic axis has no zero.
        y: rounds.iter().map(|round| Some(of(round)).filter(|gap| *gap > 0.0)).collect(),
        ..Series::default()
    };
    let mut all = vec![
        series("last policy", 1, false, |round| round.last_iterate_gap),
        series("mixture of all policies", 0, false, |round| round.mixture_gap),
        series("bound for the mixture", 7, true, |round| round.bound),
    ];
    all.extend(others.iter().zip(2..).map(|(play, color)| other(play, color, rounds)));
    let logarithmic = |label: &str, format| Axis { logarithmic: true, ..Axis::new(label, format) };
    Lines {
        title: "Gap by iteration".into(),
        x: logarithmic("iteration", Format::Integer),
        y: logarithmic("duality gap", Format::Scientific),
        series: all,
        wide: true,
        ..Lines::default()
    }
}

/// The last policy of another algorithm, in the rounds that are drawn.
fn other(play: &AlgorithmPlay, color: usize, rounds: &[&GameRecord]) -> Series {
    let gap =
        |round: &&GameRecord| play.rounds.get(round.iteration - 1).map(|at| at.last_iterate_gap);
    Series {
        name: format!("last policy, {}", play.algorithm),
        color,
        dashed: false,
        x: rounds.iter().map(|round| round.iteration as f64).collect(),
        y: rounds.iter().map(|round| gap(round).filter(|gap| *gap > 0.0)).collect(),
        ..Series::default()
    }
}

fn policies(rounds: &[&GameRecord], answers: usize) -> Lines {
    let series = (0..answers).map(|answer| Series {
        name: format!("answer {}", answer + 1),
        color: answer,
        x: rounds.iter().map(|round| round.iteration as f64).collect(),
        y: rounds.iter().map(|round| round.policy.get(answer).copied()).collect(),
        ..Series::default()
    });
    Lines {
        title: "Probability of each answer".into(),
        x: Axis { logarithmic: true, ..Axis::new("iteration", Format::Integer) },
        y: Axis::new("probability", Format::Number),
        series: series.collect(),
        wide: true,
        ..Lines::default()
    }
}

fn preferences(matrix: &PreferenceMatrix) -> Heatmap {
    let names: Vec<String> = (1..=matrix.size()).map(|answer| answer.to_string()).collect();
    Heatmap {
        title: "Probability that the row beats the column".into(),
        axis: "answer".into(),
        rows: names.clone(),
        columns: names,
        cells: matrix.rows().map(|row| row.iter().copied().map(Some).collect()).collect(),
        ..Heatmap::default()
    }
}

/// The rounds at 1, 2 and 5 times powers of ten, and the last.
fn table(rounds: &[GameRecord]) -> Table {
    let mut table = Table::new([
        Column::number("iteration", Format::Integer),
        Column::number("gap, last policy", Format::Scientific),
        Column::number("gap, mixture", Format::Scientific),
        Column::number("bound, mixture", Format::Scientific),
    ]);
    let shown = rounds.iter().filter(|round| is_told(round.iteration, rounds.len()));
    for GameRecord { iteration, last_iterate_gap, mixture_gap, bound, .. } in shown {
        let (last_policy, mixture, bound) = (*last_iterate_gap, *mixture_gap, *bound);
        table.row([(*iteration).into(), last_policy.into(), mixture.into(), bound.into()]);
    }
    table
}

/// Whether a table tells of this iteration of so many: those at 1, 2 and 5 times powers of ten, and the last.
#[must_use]
pub fn is_told(iteration: usize, last: usize) -> bool {
    let power = 10usize.pow(iteration.max(1).ilog10());
    iteration == last || iteration.is_multiple_of(power) && matches!(iteration / power, 1 | 2 | 5)
}

/// Rounds to draw: all of the first ones, then about as many per octave, so that a long game does not
/// make a large file.
pub fn drawn_rounds(count: usize) -> impl Iterator<Item = usize> {
    const PER_OCTAVE: usize = 256;
    (0..count).filter(move |&at| {
        let stride = (at / PER_OCTAVE).max(1).next_power_of_two();
        at.is_multiple_of(stride) || at + 1 == count
    })
}

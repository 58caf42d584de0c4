//! The outcome of `sppo eval` for people.

use sppo_core::evaluation::{Share, Standing};
use sppo_core::statistics::Interval;

use super::answers::ResponsesReport;
use super::{DuelReport, EvalReport};
use crate::commands::win_rates::{MATRIX_NOTE, matrix};
use crate::failure::Result;
use crate::output;
use crate::terminal::{Alignment, Table, Terminal, counted, interval, number, percent};

pub(super) fn print(report: &EvalReport, terminal: &Terminal) -> Result<()> {
    let style = terminal.stdout_style();
    let text = match &report.duel {
        Some(duel) => format!("{}\n{}", of_two(duel).render(style), sentence(report, duel)),
        None => {
            let names: Vec<&str> = report.models.iter().map(|model| model.model.as_str()).collect();
            let win_rates = matrix(&names, &report.tournament.pairs);
            let notes = format!("{MATRIX_NOTE}{}", conditions(report));
            let [ranking, win_rates] =
                [ranking(report), win_rates].map(|table| table.render(style));
            format!("{ranking}\n{win_rates}\n{}", style.dim(&notes))
        }
    };
    output::text(&text)
}

fn of_two(duel: &DuelReport) -> Table {
    let mut table = Table::new(&[
        ("model", Alignment::Left),
        ("win rate", Alignment::Right),
        ("tokens", Alignment::Right),
        ("ended", Alignment::Right),
    ]);
    let mean = duel.win_rate.mean;
    for (responses, win_rate) in [(&duel.model, mean), (&duel.against, 1.0 - mean)] {
        let [tokens, ended] = lengths(responses);
        table.row([responses.model.clone(), percent(win_rate), tokens, ended]);
    }
    table
}

fn sentence(report: &EvalReport, duel: &DuelReport) -> String {
    let Interval { mean, low, high } = duel.win_rate;
    let at_equal_length = duel.length_controlled_win_rate.map_or(String::new(), |rate| {
        format!("at equal length it wins {}, {}\n", percent(rate.mean), interval(rate))
    });
    format!(
        "{} wins {}, with {:.0} % confidence {} to {} {}\n{at_equal_length}",
        duel.model.model,
        percent(mean),
        100.0 * report.confidence,
        percent(low),
        percent(high),
        conditions(report).trim_end(),
    )
}

fn conditions(report: &EvalReport) -> String {
    format!(
        "({}, {} each, oracle {})\n",
        counted(report.prompt_count, "prompt"),
        counted(report.samples_per_prompt, "answer"),
        report.oracle
    )
}

/// All models, the strongest first.
fn ranking(report: &EvalReport) -> Table {
    let confidence = format!("{:.0} % interval", 100.0 * report.confidence);
    let mut table = Table::new(&[
        ("model", Alignment::Left),
        ("win rate", Alignment::Right),
        (&confidence, Alignment::Right),
        ("strength", Alignment::Right),
        (&confidence, Alignment::Right),
        ("Nash share", Alignment::Right),
        ("tokens", Alignment::Right),
        ("ended", Alignment::Right),
    ]);
    for Standing { model, win_rate, strength } in &report.tournament.ranking {
        let of_model = |share: &&Share| share.model == *model;
        let share = report.tournament.nash.mixture.iter().find(of_model);
        let responses = report.models.iter().find(|responses| responses.model == *model);
        let [tokens, ended] = responses.map(lengths).unwrap_or_default();
        table.row([
            model.clone(),
            percent(win_rate.mean),
            interval(*win_rate),
            format!("{:+.2}", strength.mean),
            format!("{:+.2} to {:+.2}", strength.low, strength.high),
            percent(share.map_or(0.0, |share| share.share)),
            tokens,
            ended,
        ]);
    }
    table
}

/// Mean tokens, and the share that the model ended itself.
fn lengths(responses: &ResponsesReport) -> [String; 2] {
    let or_dash = |value: Option<f64>, show: fn(f64) -> String| value.map_or("-".into(), show);
    [or_dash(responses.mean_response_tokens, number), or_dash(responses.ended_share, percent)]
}

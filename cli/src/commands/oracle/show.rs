//! The outcome of `sppo oracle check` for people.

use std::fmt::Write as _;
use std::time::Duration;

use sppo_core::oracle_quality::{CalibrationBin, OracleCheck, SubsetAccuracy};

use super::CheckReport;
use crate::failure::Result;
use crate::output;
use crate::terminal::{Alignment, Table, Terminal, counted, duration, interval, number, percent};

pub(super) fn print(report: &CheckReport, terminal: &Terminal) -> Result<()> {
    let style = terminal.stdout_style();
    let mut text = summary(report);
    if !report.check.subsets.is_empty() {
        let _ = write!(text, "\n{}", subsets(report).render(style));
    }
    let _ = write!(text, "\n{}", calibration(&report.check.calibration.bins).render(style));
    text.push_str(&style.dim(
        "probability: of the answer that the oracle prefers; it is calibrated where that is the accuracy\n",
    ));
    output::text(&text)
}

fn summary(report: &CheckReport) -> String {
    let OracleCheck { pairs, accuracy, ties, calibration, .. } = &report.check;
    let mut text = format!(
        "{} agrees with {} of {}, with {:.0} % confidence {} to {}\n",
        report.oracle,
        percent(accuracy.mean),
        counted(*pairs, "label"),
        100.0 * report.confidence,
        percent(accuracy.low),
        percent(accuracy.high),
    );
    if *ties > 0 {
        let _ =
            writeln!(text, "{}, each of which counts as half an agreement", counted(*ties, "tie"));
    }
    text.push_str(&places(&report.check));
    let _ =
        writeln!(text, "expected calibration error {:.3}", calibration.expected_calibration_error);
    text.push_str(&cost(report));
    text
}

/// The word on the order of presentation.
fn places(check: &OracleCheck) -> String {
    let OracleCheck { first_place_probability, both_orders, order_dependent, .. } = check;
    match first_place_probability {
        None => "the order of two answers changes nothing, as far as the oracle tells\n".into(),
        Some(first) => format!(
            "what it reads first gets a probability of {} (50 % is without a preference for a place); the winner \
             depends on the order in {} of {}\n",
            percent(*first),
            order_dependent,
            counted(*both_orders, "pair"),
        ),
    }
}

fn cost(report: &CheckReport) -> String {
    let time = duration(Duration::from_secs_f64(report.seconds.clamp(0.0, 1e9)));
    let service = &report.service;
    if let Some((questions, probability)) = service.labels() {
        return format!(
            "{time}, {} questions, labels with {} of the probability, {} invalid verdicts\n",
            number(questions),
            percent(probability),
            number(service.get("invalid_verdicts")),
        );
    }
    if !service.are_of_service() {
        return format!("{time}\n");
    }
    let count = |name: &str| number(service.get(name));
    let cost = report.cost.map_or(String::new(), |cost| format!(", cost {cost:.4}"));
    format!(
        "{time}, {} requests, {} tokens read and {} written, {} invalid replies, {} remembered{cost}\n",
        count("requests"),
        count("prompt_tokens"),
        count("completion_tokens"),
        count("invalid_verdicts"),
        count("cache_hits"),
    )
}

fn subsets(report: &CheckReport) -> Table {
    let confidence = format!("{:.0} % interval", 100.0 * report.confidence);
    let mut table = Table::new(&[
        ("subset", Alignment::Left),
        ("pairs", Alignment::Right),
        ("accuracy", Alignment::Right),
        (&confidence, Alignment::Right),
    ]);
    for SubsetAccuracy { subset, pairs, accuracy } in &report.check.subsets {
        table.row([subset.clone(), pairs.to_string(), percent(accuracy.mean), interval(*accuracy)]);
    }
    table
}

fn calibration(bins: &[CalibrationBin]) -> Table {
    let mut table = Table::new(&[
        ("bin", Alignment::Left),
        ("pairs", Alignment::Right),
        ("probability", Alignment::Right),
        ("accuracy", Alignment::Right),
    ]);
    for CalibrationBin { low, high, pairs, probability, accuracy } in bins {
        table.row([
            format!("{:.0} to {:.0} %", 100.0 * low, 100.0 * high),
            pairs.to_string(),
            percent(*probability),
            percent(*accuracy),
        ]);
    }
    table
}

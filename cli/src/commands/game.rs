//! `sppo game`: self-play on a small game, exactly, beside the theorem's bound.

use std::fmt::Write as _;
use std::path::Path;

use plotters::prelude::*;
use serde::Serialize;
use sppo_core::game::{self, AlgorithmPlay, GameAlgorithm, GameRecord, GameSettings};
use sppo_core::preference::PreferenceMatrix;
use sppo_core::{Error, Result as CoreResult};
use sppo_report::{drawn_rounds, game_page, is_told};

use crate::args::{GameArguments, GameKind};
use crate::failure::Result;
use crate::output;
use crate::terminal::{Alignment, Table, Terminal};

/// Values below this are drawn at it: a logarithmic axis has no zero.
const SMALLEST_DRAWN: f64 = 1e-6;
/// Most policy entries that are kept in memory.
const MOST_ENTRIES: usize = 50_000_000;

#[derive(Serialize)]
struct GameReport<'a> {
    game: String,
    size: usize,
    eta: f64,
    /// The step's bound holds from one iteration to the last.
    rounds: &'a [GameRecord],
    /// Other algorithms, with the same step size.
    #[serde(skip_serializing_if = "<[AlgorithmPlay]>::is_empty")]
    algorithms: &'a [AlgorithmPlay],
}

pub(super) fn game(arguments: &GameArguments, terminal: &Terminal) -> Result<()> {
    let (name, matrix) = choose(arguments)?;
    let iterations = arguments.iterations as usize;
    refuse_senseless(arguments, matrix.size())?;
    output::require_distinct(
        &[
            ("--svg", arguments.svg.as_deref()),
            ("--html", arguments.html.as_deref()),
            ("--csv", arguments.csv.as_deref()),
        ],
        &[("--matrix", arguments.matrix.as_deref())],
    )?;
    let start = game::slanted_start(matrix.size());
    let settings = GameSettings { iterations, eta: arguments.eta };
    let rounds = game::play(&matrix, &start, &settings);
    let others = others(arguments, &matrix, &start, &settings)?;

    if let Some(file) = &arguments.svg {
        output::file(file, draw(&name, &rounds, &others, file)?.as_bytes())?;
    }
    if let Some(file) = &arguments.csv {
        output::file(file, csv(&rounds, &others).as_bytes())?;
    }
    let eta = arguments.eta.unwrap_or_else(|| game::default_eta(&start, iterations));
    if let Some(file) = &arguments.html {
        game_page(&name, &matrix, eta, &rounds, &others).write(file)?;
    }
    if arguments.report.json {
        let (size, rounds, algorithms) = (matrix.size(), &rounds, &others);
        return output::json(&GameReport { game: name, size, eta, rounds, algorithms });
    }
    output::text(&format!(
        "{name}, {} answers, eta {eta:.4}\n\n{}",
        matrix.size(),
        table(&rounds, &others).render(terminal.stdout_style())
    ))?;
    for file in arguments.svg.iter().chain(&arguments.html).chain(&arguments.csv) {
        terminal.note(&format!("wrote {}", file.display()));
    }
    Ok(())
}

/// The play of the other algorithms that were asked for, each once.
fn others(
    arguments: &GameArguments,
    matrix: &PreferenceMatrix,
    start: &[f64],
    settings: &GameSettings,
) -> CoreResult<Vec<AlgorithmPlay>> {
    let mut played: Vec<AlgorithmPlay> = Vec::new();
    for &choice in &arguments.algorithm {
        let algorithm = GameAlgorithm::from(choice);
        if played.iter().all(|play| play.algorithm != algorithm) {
            played.push(AlgorithmPlay::new(algorithm, matrix, start, settings)?);
        }
    }
    Ok(played)
}

fn choose(arguments: &GameArguments) -> CoreResult<(String, PreferenceMatrix)> {
    let size = |otherwise| usize::from(arguments.size.unwrap_or(otherwise));
    match (&arguments.matrix, arguments.kind) {
        (Some(file), _) => Ok((file.display().to_string(), game::read_matrix(file)?)),
        (None, GameKind::Cycle) => Ok(("cycle".into(), game::cycle(size(3))?)),
        (None, GameKind::Random) => {
            let name = format!("random game {}", arguments.seed);
            Ok((name, game::random(size(10), arguments.seed)?))
        }
    }
}

fn refuse_senseless(arguments: &GameArguments, size: usize) -> CoreResult<()> {
    if arguments.eta.is_some_and(|eta| !eta.is_finite() || eta <= 0.0) {
        return Err(Error::configuration("--eta", "must be a number above 0")
            .with_hint("leave it out for the one that makes the bound smallest"));
    }
    if size.saturating_mul(arguments.iterations as usize) > MOST_ENTRIES {
        return Err(Error::configuration(
            "--iterations",
            format!("a game of {size} answers takes too much memory for that many"),
        )
        .with_hint(format!("give at most {}", MOST_ENTRIES / size)));
    }
    Ok(())
}

/// The first round, the last, and those at 1, 2 and 5 times powers of ten between them.
fn table(rounds: &[GameRecord], others: &[AlgorithmPlay]) -> Table {
    let names: Vec<String> =
        others.iter().map(|play| format!("gap, last policy, {}", play.algorithm)).collect();
    let own = ["iteration", "gap, last policy", "gap, mixture", "bound, mixture"];
    let columns = own.into_iter().chain(names.iter().map(String::as_str));
    let columns: Vec<_> = columns.map(|name| (name, Alignment::Right)).collect();
    let mut table = Table::new(&columns);
    for (index, record) in rounds.iter().enumerate() {
        if is_told(record.iteration, rounds.len()) {
            let own = [record.last_iterate_gap, record.mixture_gap, record.bound];
            let others = others.iter().filter_map(|play| play.rounds.get(index));
            let gaps = own.into_iter().chain(others.map(|round| round.last_iterate_gap));
            let gaps = gaps.map(|gap| format!("{gap:.6}"));
            table.row([record.iteration.to_string()].into_iter().chain(gaps));
        }
    }
    table
}

fn csv(rounds: &[GameRecord], others: &[AlgorithmPlay]) -> String {
    let size = rounds.first().map_or(0, |record| record.policy.len());
    let mut text = String::from("iteration,last_iterate_gap,mixture_gap,bound");
    for answer in 0..size {
        let _ = write!(text, ",policy_{answer}");
    }
    for play in others {
        let name = play.algorithm.to_string().replace(' ', "_");
        let _ = write!(text, ",{name}_last_iterate_gap,{name}_mixture_gap");
    }
    for (index, record) in rounds.iter().enumerate() {
        let GameRecord { iteration, last_iterate_gap, mixture_gap, bound, policy } = record;
        let _ = write!(text, "\n{iteration},{last_iterate_gap},{mixture_gap},{bound}");
        for weight in policy {
            let _ = write!(text, ",{weight}");
        }
        for round in others.iter().filter_map(|play| play.rounds.get(index)) {
            let _ = write!(text, ",{},{}", round.last_iterate_gap, round.mixture_gap);
        }
    }
    text.push('\n');
    text
}

fn draw(
    name: &str,
    rounds: &[GameRecord],
    others: &[AlgorithmPlay],
    file: &Path,
) -> CoreResult<String> {
    let mut svg = String::new();
    draw_into(&mut svg, name, &curves(rounds, others)).map_err(|error| {
        Error::input(file, format!("cannot draw the gaps: {error}"))
            .with_hint("leave out --svg, and report it")
    })?;
    Ok(svg)
}

type DrawResult = std::result::Result<(), Box<dyn std::error::Error>>;

/// One line of the drawing.
struct Curve {
    name: String,
    color: RGBColor,
    /// A value for each round.
    values: Vec<f64>,
}

/// The bound and the gaps of SPPO, and the gaps of the last policies of the others.
fn curves(rounds: &[GameRecord], others: &[AlgorithmPlay]) -> Vec<Curve> {
    const COLORS: [RGBColor; 3] =
        [RGBColor(40, 150, 90), RGBColor(150, 70, 170), RGBColor(190, 50, 60)];
    let own = |name: &str, color, of: fn(&GameRecord) -> f64| Curve {
        name: name.into(),
        color,
        values: rounds.iter().map(of).collect(),
    };
    let mut curves = vec![
        own("bound, mixture", RGBColor(150, 150, 150), |record| record.bound),
        own("last policy", RGBColor(214, 120, 30), |record| record.last_iterate_gap),
        own("mixture", RGBColor(30, 100, 180), |record| record.mixture_gap),
    ];
    curves.extend(others.iter().zip(COLORS).map(|(play, color)| Curve {
        name: format!("last policy, {}", play.algorithm),
        color,
        values: play.rounds.iter().map(|round| round.last_iterate_gap).collect(),
    }));
    curves
}

fn draw_into(svg: &mut String, name: &str, curves: &[Curve]) -> DrawResult {
    let drawn = |value: f64| value.max(SMALLEST_DRAWN);
    let values = || curves.iter().flat_map(|curve| curve.values.iter().map(|value| drawn(*value)));
    let lowest = values().fold(f64::INFINITY, f64::min) / 1.5;
    let highest = values().fold(SMALLEST_DRAWN, f64::max) * 1.5;
    let rounds = curves.first().map_or(0, |curve| curve.values.len());
    let last = rounds.max(2) as f64;

    let canvas = SVGBackend::with_string(svg, (800, 500)).into_drawing_area();
    canvas.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&canvas)
        .caption(format!("Duality gap of SPPO's iteration: {name}"), ("sans-serif", 20))
        .margin(15)
        .x_label_area_size(45)
        .y_label_area_size(65)
        .build_cartesian_2d((1.0..last).log_scale(), (lowest..highest).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("iteration")
        .y_desc("duality gap")
        .y_label_formatter(&|value| format!("{value:.0e}"))
        .light_line_style(WHITE)
        .draw()?;
    for Curve { name, color, values } in curves {
        let points = drawn_rounds(rounds).map(|at| ((at + 1) as f64, drawn(values[at])));
        let style = color.stroke_width(2);
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    canvas.present()?;
    Ok(())
}

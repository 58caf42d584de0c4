//! `sppo game`: self-play on a small game, exactly, beside the theorem's bound.

use std::fmt::Write as _;
use std::path::Path;

use plotters::prelude::*;
use serde::Serialize;
use sppo_core::game::{self, GameRecord, GameSettings};
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

    if let Some(file) = &arguments.svg {
        output::file(file, draw(&name, &rounds, file)?.as_bytes())?;
    }
    if let Some(file) = &arguments.csv {
        output::file(file, csv(&rounds).as_bytes())?;
    }
    let eta = arguments.eta.unwrap_or_else(|| game::default_eta(&start, iterations));
    if let Some(file) = &arguments.html {
        game_page(&name, &matrix, eta, &rounds).write(file)?;
    }
    if arguments.report.json {
        return output::json(&GameReport { game: name, size: matrix.size(), eta, rounds: &rounds });
    }
    output::text(&format!(
        "{name}, {} answers, eta {eta:.4}\n\n{}",
        matrix.size(),
        table(&rounds).render(terminal.stdout_style())
    ))?;
    for file in arguments.svg.iter().chain(&arguments.html).chain(&arguments.csv) {
        terminal.note(&format!("wrote {}", file.display()));
    }
    Ok(())
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
fn table(rounds: &[GameRecord]) -> Table {
    let mut table = Table::new(&[
        ("iteration", Alignment::Right),
        ("gap, last policy", Alignment::Right),
        ("gap, mixture", Alignment::Right),
        ("bound, mixture", Alignment::Right),
    ]);
    for record in rounds {
        if is_told(record.iteration, rounds.len()) {
            table.row([
                record.iteration.to_string(),
                format!("{:.6}", record.last_iterate_gap),
                format!("{:.6}", record.mixture_gap),
                format!("{:.6}", record.bound),
            ]);
        }
    }
    table
}

fn csv(rounds: &[GameRecord]) -> String {
    let size = rounds.first().map_or(0, |record| record.policy.len());
    let mut text = String::from("iteration,last_iterate_gap,mixture_gap,bound");
    for answer in 0..size {
        let _ = write!(text, ",policy_{answer}");
    }
    for record in rounds {
        let GameRecord { iteration, last_iterate_gap, mixture_gap, bound, policy } = record;
        let _ = write!(text, "\n{iteration},{last_iterate_gap},{mixture_gap},{bound}");
        for weight in policy {
            let _ = write!(text, ",{weight}");
        }
    }
    text.push('\n');
    text
}

fn draw(name: &str, rounds: &[GameRecord], file: &Path) -> CoreResult<String> {
    let mut svg = String::new();
    draw_into(&mut svg, name, rounds).map_err(|error| {
        Error::input(file, format!("cannot draw the gaps: {error}"))
            .with_hint("leave out --svg, and report it")
    })?;
    Ok(svg)
}

type DrawResult = std::result::Result<(), Box<dyn std::error::Error>>;

/// One line of the drawing: its name, its colour, and what it shows of a round.
type Curve = (&'static str, RGBColor, fn(&GameRecord) -> f64);

fn draw_into(svg: &mut String, name: &str, rounds: &[GameRecord]) -> DrawResult {
    let curves: [Curve; 3] = [
        ("bound, mixture", RGBColor(150, 150, 150), |record| record.bound),
        ("last policy", RGBColor(214, 120, 30), |record| record.last_iterate_gap),
        ("mixture", RGBColor(30, 100, 180), |record| record.mixture_gap),
    ];
    let drawn = |value: f64| value.max(SMALLEST_DRAWN);
    let values =
        || curves.iter().flat_map(|(_, _, of)| rounds.iter().map(|round| drawn(of(round))));
    let lowest = values().fold(f64::INFINITY, f64::min) / 1.5;
    let highest = values().fold(SMALLEST_DRAWN, f64::max) * 1.5;
    let last = rounds.len().max(2) as f64;

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
    for (label, color, of) in curves {
        let points = drawn_rounds(rounds.len())
            .map(|at| (rounds[at].iteration as f64, drawn(of(&rounds[at]))));
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
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

//! The oracle, the matrix of win rates, and the prompts without a pair.

use sppo_core::oracle_quality::VerdictCounts;

use super::{counted, iteration_name, of_run, share, with_details};
use crate::page::{BarSeries, Bars, Block, Cell, Column, Figure, Format, Heatmap, Section, Table};
use crate::run::{OrderReport, RunReport};

/// Most prompts that are listed by name.
const MOST_LISTED: usize = 200;
/// Most characters of a prompt in that list.
const MOST_CHARACTERS: usize = 300;

/// Position bias, ties, circles, and the oracle's requests.
pub(super) fn section(runs: &[RunReport]) -> Section {
    let mut section = Section::new("oracle", "Oracle").note(
        "The oracle compares pairs of answers to a prompt. A triple is intransitive where A beats B, B beats C, and \
         C beats A: no score could say that.",
    );
    let has_pairs = |run: &&RunReport| run.oracle.iterations.iter().any(|counts| counts.pairs > 0);
    match runs {
        [run] => {
            let figures = figures(run);
            if !figures.is_empty() {
                section = section.block(Block::Figures { items: figures });
            }
        }
        _ => section = section.block(Block::Table(oracles(runs))),
    }
    let tables = runs.iter().filter(has_pairs).map(|run| Block::Table(pairs(runs, run))).collect();
    with_details(section, runs, "Iteration by iteration", tables)
}

/// The figures of several runs, one below the other.
fn oracles(runs: &[RunReport]) -> Table {
    let names = ["read first", "depends on order", "ties", "intransitive"];
    let mut columns = vec![Column::text("run"), Column::text("oracle")];
    columns.extend(names.map(|name| Column::number(name, Format::Percent)));
    columns.push(Column::number("requests", Format::Integer));
    let mut table = Table::new(columns);
    for run in runs {
        let OrderReport { duels, first_place_probability, order_dependent, ties, .. } =
            run.oracle.held_out_orders;
        let (triples, circles) = triples(run);
        table.row([
            run.name.as_str().into(),
            run.oracle_name.as_str().into(),
            first_place_probability.into(),
            share(order_dependent, duels).into(),
            share(ties, duels).into(),
            share(circles, triples).into(),
            requests(run).into(),
        ]);
    }
    table.note = Some(
        "On held-out duels: probability of the answer that is read first, duels whose winner depends on the order, \
         ties. On sampled answers: intransitive triples."
            .into(),
    );
    table
}

/// Requests to a service; `None` where the oracle asks none.
fn requests(run: &RunReport) -> Option<f64> {
    let service = &run.oracle.service;
    service.are_of_service().then(|| service.get("requests"))
}

/// Triples of sampled answers without ties, and those of them that are intransitive.
fn triples(run: &RunReport) -> (usize, usize) {
    let VerdictCounts { triples, intransitive, .. } = run.oracle.of_sampled();
    (triples, intransitive)
}

fn figures(run: &RunReport) -> Vec<Figure> {
    let OrderReport { duels, first_place_probability, has_order, order_dependent, ties } =
        run.oracle.held_out_orders;
    let figure = |label: &str, value: Cell, format, detail: String| Figure {
        label: label.into(),
        value,
        format,
        detail: Some(detail),
    };
    let mut figures = Vec::new();
    if duels > 0 {
        let of_duels = |what: &str| format!("{what} {}", counted(duels, "held-out duel"));
        figures.extend([
            figure(
                "Probability of what it reads first",
                first_place_probability.into(),
                Format::Percent,
                match has_order {
                    true => "50 % is without a preference for a place".into(),
                    false => "both orders give the same probabilities".into(),
                },
            ),
            figure(
                "Winner depends on the order",
                share(order_dependent, duels).into(),
                Format::Percent,
                of_duels("of"),
            ),
            figure("Ties", share(ties, duels).into(), Format::Percent, of_duels("of")),
        ]);
    }
    if let (triples @ 1.., circles) = triples(run) {
        let detail = format!("of {}", counted(triples, "triple"));
        let circles = share(circles, triples);
        figures.push(figure("Intransitive triples", circles.into(), Format::Percent, detail));
    }
    figures.extend(sampled_figures(run));
    figures.extend(label_figures(run));
    figures.extend(service_figures(run));
    figures
}

/// Places and pairs left out, over the sampled answers.
fn sampled_figures(run: &RunReport) -> Vec<Figure> {
    let total = run.oracle.of_sampled();
    let VerdictCounts { pairs: asked, unasked, both_orders, order_dependent, .. } = total;
    let mut figures = Vec::new();
    if let Some(first) = total.first_place_probability {
        figures.push(Figure {
            label: "Probability of what it reads first, sampled answers".into(),
            value: first.into(),
            format: Format::Percent,
            detail: Some(format!("over {}", counted(total.presentations, "question"))),
        });
    }
    if both_orders > 0 {
        figures.push(Figure {
            label: "Winner depends on the order, sampled answers".into(),
            value: share(order_dependent, both_orders).into(),
            format: Format::Percent,
            detail: Some(format!("of {}", counted(both_orders, "pair"))),
        });
    }
    if unasked > 0 {
        figures.push(Figure {
            label: "Pairs that were asked about".into(),
            value: share(asked, asked + unasked).into(),
            format: Format::Percent,
            detail: Some(format!(
                "of {}; the others follow from these",
                counted(asked + unasked, "pair")
            )),
        });
    }
    figures
}

/// Labels of a model that is asked in process.
fn label_figures(run: &RunReport) -> Vec<Figure> {
    let service = &run.oracle.service;
    let Some((questions, probability)) = service.labels() else { return Vec::new() };
    let (invalid, undecided) = (service.get("invalid_verdicts"), service.get("undecided_pairs"));
    vec![
        Figure {
            label: "Probability of the labels".into(),
            value: probability.into(),
            format: Format::Percent,
            detail: Some("with the rest the judge would say something else".into()),
        },
        Figure {
            label: "Invalid verdicts".into(),
            value: invalid.into(),
            format: Format::Integer,
            detail: Some(format!(
                "of {questions} questions; {undecided} pairs stayed undecided and count as ties"
            )),
        },
    ]
}

/// Requests and tokens of an oracle that asks a service.
fn service_figures(run: &RunReport) -> Vec<Figure> {
    let service = &run.oracle.service;
    let count = |name: &str| service.get(name);
    let figure = |label: &str, value: f64, detail: String| Figure {
        label: label.into(),
        value: value.into(),
        format: Format::Integer,
        detail: Some(detail),
    };
    if !service.are_of_service() {
        return Vec::new();
    }
    let mut figures = vec![
        figure("Requests", count("requests"), format!("{} were tried again", count("retries"))),
        figure(
            "Invalid replies",
            count("invalid_verdicts"),
            format!("{} pairs stayed undecided and count as ties", count("undecided_pairs")),
        ),
        figure("Remembered judgments", count("cache_hits"), "no request was needed".into()),
        figure(
            "Tokens",
            count("prompt_tokens") + count("completion_tokens"),
            format!("{} read, {} written", count("prompt_tokens"), count("completion_tokens")),
        ),
    ];
    if let Some(cost) = run.oracle.cost {
        let detail = "by `preference.prices`, in their currency".to_owned();
        figures.push(Figure { format: Format::Number, ..figure("Cost", cost, detail) });
    }
    figures
}

fn pairs(runs: &[RunReport], run: &RunReport) -> Table {
    let mut table = Table::new([
        Column::text("iteration"),
        Column::number("pairs", Format::Integer),
        Column::number("not asked", Format::Integer),
        Column::number("ties", Format::Integer),
        Column::number("read first", Format::Percent),
        Column::number("winner depends on the order", Format::Integer),
        Column::number("triples without ties", Format::Integer),
        Column::number("intransitive", Format::Integer),
    ]);
    table.title = Some(of_run(runs, run, "Sampled answers"));
    for (index, counts) in run.oracle.iterations.iter().enumerate() {
        let VerdictCounts { pairs, unasked, ties, order_dependent, triples, intransitive, .. } =
            *counts;
        table.row([
            iteration_name(index as u32 + 1).into(),
            pairs.into(),
            unasked.into(),
            ties.into(),
            counts.first_place_probability.into(),
            order_dependent.into(),
            triples.into(),
            intransitive.into(),
        ]);
    }
    table
}

/// Win rate of each iteration against each other, as far as they were judged.
pub(super) fn matrices(runs: &[RunReport]) -> Section {
    let mut section = Section::new("matrix", "Every iteration against every other").note(
        "Win rate of the row against the column on the held-out prompts. With a service as the oracle only duels \
         with the start are judged: the other cells stay empty.",
    );
    for run in runs {
        let cells = &run.win_rate_matrix;
        if cells.iter().flatten().all(Option::is_none) {
            continue;
        }
        let names: Vec<String> = (0..cells.len() as u32).map(iteration_name).collect();
        section = section.block(Block::Heatmap(Heatmap {
            title: of_run(runs, run, ""),
            note: None,
            axis: "iteration".into(),
            rows: names.clone(),
            columns: names,
            cells: cells.clone(),
        }));
    }
    section
}

/// Prompts that gave no pair, by reason.
pub(super) fn skipped(runs: &[RunReport]) -> Section {
    let mut section = Section::new("skipped", "Skipped prompts").note(
        "A prompt gives no pair where its best and worst answers read the same, or all of them are judged equal.",
    );
    for run in runs.iter().filter(|run| run.iterations.iter().any(|one| one.prompts > 0)) {
        section = section.block(Block::Bars(prompts_by_use(runs, run)));
        if !run.skipped.is_empty() {
            section = section.block(skipped_list(run));
        }
    }
    section
}

fn prompts_by_use(runs: &[RunReport], run: &RunReport) -> Bars {
    let iterations = || run.iterations.iter().filter(|one| one.report.iteration > 0);
    let series = |name: &str, color, of: fn(&crate::run::IterationSummary) -> usize| BarSeries {
        name: name.into(),
        color,
        values: iterations().map(|one| Some(of(one) as f64)).collect(),
    };
    Bars {
        title: of_run(runs, run, "Prompts by iteration"),
        note: None,
        format: Format::Integer,
        labels: iterations().map(|one| iteration_name(one.report.iteration)).collect(),
        series: vec![
            series("trained on", 0, |one| one.report.examples),
            series("skipped: same text", 1, |one| one.report.skipped_identical),
            series("skipped: judged equal", 4, |one| one.report.skipped_equal),
        ],
        wide: true,
    }
}

/// The beginning of a long text.
fn beginning(text: &str) -> String {
    match text.char_indices().nth(MOST_CHARACTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

fn skipped_list(run: &RunReport) -> Block {
    let mut table =
        Table::new([Column::text("iteration"), Column::text("reason"), Column::text("prompt")]);
    for prompt in run.skipped.iter().take(MOST_LISTED) {
        let name = iteration_name(prompt.iteration);
        table.row([name.into(), prompt.reason.into(), beginning(&prompt.text).into()]);
    }
    if run.skipped.len() > MOST_LISTED {
        table.note = Some(format!("the first {MOST_LISTED} of {}", run.skipped.len()));
    }
    Block::Details {
        summary: format!("{} skipped in {}", counted(run.skipped.len(), "prompt"), run.name),
        blocks: vec![Block::Table(table)],
    }
}

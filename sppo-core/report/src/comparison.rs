//! The page of a comparison of runs.

use sppo_core::comparison::{ArmIteration, ArmReport, ComparisonReport, START};
use sppo_core::evaluation::{PairReport, Share, Standing};
use sppo_core::statistics::Interval;

use crate::page::{
    Axis, Badge, Block, Column, Format, Heatmap, IntervalSeries, Intervals, Level, Lines, Page,
    Section, Series, Table,
};

/// Seeds below which an interval says little about the spread between seeds.
const FEW_SEEDS: usize = 3;

/// The page of a comparison of this name: win rates against the start and between arms, the changes of
/// log-probabilities, the ranking, and the work.
#[must_use]
pub fn comparison_page(name: &str, report: &ComparisonReport) -> Page {
    let mut page = Page::new(name, sentence(report));
    page.facts = vec![
        format!("judged by {}", report.judge),
        format!("{} held-out prompts, {} answers each", report.prompts, report.samples_per_prompt),
        format!("seeds: {}", seeds(report)),
    ];
    page.badges = badges(report);
    page.section(results(report))
        .section(between(report))
        .section(dynamics(report))
        .section(ranking(report))
        .section(work(report))
        .section(runs(report))
}

fn last(arm: &ArmReport) -> Option<&ArmIteration> {
    arm.iterations.last()
}

fn seeds(report: &ComparisonReport) -> usize {
    report.arms.iter().map(|arm| arm.runs.len()).min().unwrap_or(0)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// The arm with the highest win rate against the start, and what is known of it against the others.
fn sentence(report: &ComparisonReport) -> String {
    let rate = |arm: &&ArmReport| last(arm).map_or(f64::NEG_INFINITY, |last| last.win_rate.mean);
    let best = report.arms.iter().max_by(|a, b| rate(a).total_cmp(&rate(b)));
    let Some((best, last)) = best.and_then(|best| Some((best, last(best)?))) else {
        return "There are no runs.".into();
    };
    let Interval { mean, low, high } = last.win_rate;
    let (others, beaten) = (report.arms.len() - 1, beaten_by(&best.name, report));
    let against_others = match (others, beaten) {
        (0, _) => String::new(),
        (1, 1) => {
            " Against the other arm it wins more than half, the whole interval included.".into()
        }
        (_, beaten) => format!(
            " Against {beaten} of the {others} other arms it wins more than half, the whole interval included."
        ),
    };
    format!(
        "{} wins most against the starting model: {} ({} to {}) after {} iterations.{against_others}",
        best.name,
        percent(mean),
        percent(low),
        percent(high),
        last.iteration
    )
}

/// Number of arms against which the win rate of this one is above one half, its whole interval included.
fn beaten_by(name: &str, report: &ComparisonReport) -> usize {
    let wins = report.pairs.iter().filter(|pair| {
        (pair.first == name && pair.win_rate.low > 0.5)
            || (pair.second == name && pair.win_rate.high < 0.5)
    });
    wins.count()
}

fn badges(report: &ComparisonReport) -> Vec<Badge> {
    let seeds = seeds(report);
    let text = match seeds {
        1 => "With one seed, intervals say nothing about the spread between seeds.".to_owned(),
        _ => format!("With {seeds} seeds, intervals say little about the spread between seeds."),
    };
    let few = (seeds < FEW_SEEDS).then_some(Badge { level: Level::Note, text });
    few.into_iter().collect()
}

/// Win rates against the start after every iteration, and a table of the last.
fn results(report: &ComparisonReport) -> Section {
    let most = report.arms.iter().map(|arm| arm.iterations.len()).max().unwrap_or(0);
    let series = |of: fn(&ArmIteration) -> Option<Interval>, what: &'static str, hollow| {
        report.arms.iter().enumerate().map(move |(color, arm)| IntervalSeries {
            name: format!("{}{what}", arm.name),
            color,
            hollow,
            points: arm.iterations.iter().map(of).collect(),
        })
    };
    let plain = series(|one| Some(one.win_rate), "", false);
    let at_equal_length = series(|one| one.length_controlled_win_rate, ", equal length", true);
    let intervals = Intervals {
        title: "Win rate against the starting model".into(),
        note: Some(format!(
            "Mean probability that the judge prefers the answer, over both orders of presentation, with its \
             {:.0} % bootstrap interval over prompts and seeds.",
            100.0 * report.confidence
        )),
        y: Axis::new("win rate", Format::Percent),
        labels: (1..=most).map(|iteration| format!("iteration {iteration}")).collect(),
        reference: Some(0.5),
        series: plain.chain(at_equal_length).collect(),
        wide: true,
    };
    Section::new("results", "Against the start")
        .block(Block::Intervals(intervals))
        .block(Block::Table(last_iterations(report)))
}

fn last_iterations(report: &ComparisonReport) -> Table {
    let mut table = Table::new([
        Column::text("arm"),
        Column::number("win rate", Format::Percent),
        Column::number("at equal length", Format::Percent),
        Column::number("tokens", Format::Number),
        Column::number("ended", Format::Percent),
        Column::number("chosen", Format::Signed),
        Column::number("rejected", Format::Signed),
    ]);
    table.title = Some("After the last iteration".into());
    table.note = Some(
        "Chosen and rejected: mean change of the log-probability of what was trained on, in the last iteration."
            .into(),
    );
    for arm in &report.arms {
        let Some(last) = last(arm) else { continue };
        table.row([
            arm.name.as_str().into(),
            last.win_rate.into(),
            last.length_controlled_win_rate.into(),
            last.mean_response_tokens.into(),
            last.ended_share.into(),
            last.chosen_log_prob_change.into(),
            last.rejected_log_prob_change.into(),
        ]);
    }
    table
}

/// Arms against arms.
fn between(report: &ComparisonReport) -> Section {
    let names: Vec<&str> =
        [START].into_iter().chain(report.arms.iter().map(|arm| arm.name.as_str())).collect();
    let cells = |row: &&str| names.iter().map(|column| win_rate(row, column, report)).collect();
    let owned: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let heatmap = Heatmap {
        title: "Win rate of the row against the column".into(),
        axis: "arm".into(),
        columns: owned.clone(),
        rows: owned,
        cells: names.iter().map(cells).collect(),
        ..Heatmap::default()
    };
    let mut table = Table::new([
        Column::text("arm"),
        Column::text("against"),
        Column::number("win rate", Format::Percent),
        Column::number("at equal length", Format::Percent),
        Column::number("difference against the start", Format::Percent),
    ]);
    table.note = Some(
        "Answers of runs with the same seed meet. The difference is that of the two win rates against the \
         start, taken prompt by prompt."
            .into(),
    );
    for pair in &report.pairs {
        table.row([
            pair.first.as_str().into(),
            pair.second.as_str().into(),
            pair.win_rate.into(),
            pair.length_controlled_win_rate.into(),
            pair.difference_against_start.into(),
        ]);
    }
    let section = Section::new("between", "Against each other").block(Block::Heatmap(heatmap));
    if report.pairs.is_empty() { section } else { section.block(Block::Table(table)) }
}

fn win_rate(row: &str, column: &str, report: &ComparisonReport) -> Option<f64> {
    let of = |pair: &PairReport| match (pair.first.as_str(), pair.second.as_str()) {
        (first, second) if (first, second) == (row, column) => Some(pair.win_rate.mean),
        (first, second) if (second, first) == (row, column) => Some(1.0 - pair.win_rate.mean),
        _ => None,
    };
    report.tournament.pairs.iter().find_map(of)
}

/// Changes of the log-probabilities of chosen and rejected responses.
fn dynamics(report: &ComparisonReport) -> Section {
    let lines = |title: &str, of: fn(&ArmIteration) -> Option<f64>| Lines {
        title: title.into(),
        x: Axis::new("iteration", Format::Integer),
        y: Axis::new("change of log-probability", Format::Signed),
        series: report
            .arms
            .iter()
            .enumerate()
            .map(|(color, arm)| Series {
                name: arm.name.clone(),
                color,
                x: arm.iterations.iter().map(|one| f64::from(one.iteration)).collect(),
                y: arm.iterations.iter().map(of).collect(),
                ..Series::default()
            })
            .collect(),
        ..Lines::default()
    };
    Section::new("dynamics", "Log-probabilities")
        .note("Mean change on the training pairs in each iteration, since the start of that iteration.")
        .block(Block::Lines(lines("Chosen responses", |one| one.chosen_log_prob_change)))
        .block(Block::Lines(lines("Rejected responses", |one| one.rejected_log_prob_change)))
}

fn ranking(report: &ComparisonReport) -> Section {
    let mut table = Table::new([
        Column::text("model"),
        Column::number("win rate against all others", Format::Percent),
        Column::number("strength", Format::Signed),
        Column::number("share in the Nash mixture", Format::Percent),
    ]);
    for Standing { model, win_rate, strength } in &report.tournament.ranking {
        let of_model = |share: &&Share| share.model == *model;
        let share = report.tournament.nash.mixture.iter().find(of_model).map(|share| share.share);
        table.row([model.as_str().into(), (*win_rate).into(), (*strength).into(), share.into()]);
    }
    Section::new("ranking", "Ranking")
        .note(
            "Strengths are those of Bradley and Terry, in log-odds. The Nash mixture is one that no single arm \
             beats.",
        )
        .block(Block::Table(table))
}

fn work(report: &ComparisonReport) -> Section {
    let mut table = Table::new([
        Column::text("arm"),
        Column::number("tokens sampled", Format::Integer),
        Column::number("tokens trained on", Format::Integer),
        Column::number("steps", Format::Number),
        Column::number("examples per iteration", Format::Number),
        Column::number("time in steps", Format::Duration),
        Column::number("time in all", Format::Duration),
    ]);
    for arm in &report.arms {
        let examples: f64 = arm.iterations.iter().map(|one| one.examples).sum();
        table.row([
            arm.name.as_str().into(),
            arm.work.sampled_tokens.into(),
            arm.work.trained_tokens.into(),
            arm.work.optimizer_steps.into(),
            (examples / arm.iterations.len().max(1) as f64).into(),
            arm.time.training_seconds.into(),
            arm.time.seconds.into(),
        ]);
    }
    Section::new("work", "Work of one run")
        .note("Means over the runs of an arm. Time in all is without work that another run had done already.")
        .block(Block::Table(table))
}

fn runs(report: &ComparisonReport) -> Section {
    let mut table = Table::new([
        Column::text("run"),
        Column::text("arm"),
        Column::text("directory"),
        Column::number("seed", Format::Number),
        Column::number("win rate", Format::Percent),
    ]);
    for arm in &report.arms {
        for run in &arm.runs {
            table.row([
                run.name.as_str().into(),
                arm.name.as_str().into(),
                run.directory.display().to_string().into(),
                run.seed.to_string().into(),
                run.win_rate.into(),
            ]);
        }
    }
    let mut settings = Table::new([Column::text("arm"), Column::text("settings")]);
    for arm in &report.arms {
        let set = arm.settings.iter().map(|(key, value)| format!("{key} = {value}"));
        settings.row([arm.name.as_str().into(), set.collect::<Vec<_>>().join(", ").into()]);
    }
    Section::new("runs", "Runs")
        .note("Win rates are against the start after the last iteration, with intervals over prompts.")
        .block(Block::Table(table))
        .block(Block::Table(settings))
}

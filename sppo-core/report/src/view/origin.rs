//! Settings, hashes, versions, processes, and the command that repeats the run.

use std::collections::BTreeMap;

use super::of_run;
use crate::page::{Block, Cell, Column, Format, Section, Table};
use crate::run::{RunReport, Setting};

/// Everything that tells which run this is.
pub(super) fn section(runs: &[RunReport]) -> Section {
    let mut section = Section::new("origin", "Origin").block(Block::Table(settings(runs)));
    for run in runs {
        let how = match run.origin.is_exact {
            true => "This plays a run with the same settings:",
            false => "This plays a run with settings as near as a command can say them:",
        };
        section = section
            .block(Block::Text { text: of_run(runs, run, how) })
            .block(Block::Code { text: run.origin.command.clone() });
    }
    section = section.block(Block::Table(identities(runs)));
    for run in runs.iter().filter(|run| !run.processes.is_empty()) {
        section = section.block(Block::Table(processes(runs, run)));
    }
    section
}

/// The settings that differ from the preset, with a column for each run.
fn settings(runs: &[RunReport]) -> Table {
    let mut columns = vec![Column::text("setting")];
    let mut rows: BTreeMap<&str, Vec<Cell>> = BTreeMap::new();
    for (index, run) in runs.iter().enumerate() {
        if runs.len() == 1 {
            columns.push(Column::text(format!("preset {}", run.origin.preset)));
        }
        columns.push(Column::text(if runs.len() == 1 { "this run" } else { run.name.as_str() }));
        for Setting { key, preset, value } in &run.origin.settings {
            let row = rows.entry(key).or_insert_with(|| vec![Cell::Empty; runs.len()]);
            row[index] = value.clone().into();
            if runs.len() == 1 {
                row.insert(0, preset.clone().into());
            }
        }
    }
    let mut table = Table::new(columns);
    for (key, cells) in rows {
        table.row(std::iter::once(Cell::from(key)).chain(cells));
    }
    table.title = Some(match runs {
        [run] => format!("Settings other than those of the preset {}", run.origin.preset),
        _ => "Settings other than those of their presets".into(),
    });
    if table.rows.is_empty() {
        table.note = Some("None: these are the preset's settings.".into());
    }
    table
}

fn identities(runs: &[RunReport]) -> Table {
    let mut columns = vec![Column::text("")];
    columns.extend(runs.iter().map(|run| Column::text(of_run(runs, run, ""))));
    let mut table = Table::new(columns);
    let mut row = |name: &str, of: &dyn Fn(&RunReport) -> String| {
        table.row(std::iter::once(Cell::from(name)).chain(runs.iter().map(|run| of(run).into())));
    };
    row("directory", &|run| run.directory.display().to_string());
    row("model", &|run| run.model.clone());
    row("model, SHA-256", &|run| run.origin.model_sha256.clone());
    row("prompts, SHA-256", &|run| run.origin.prompts_sha256.clone());
    row("preset", &|run| run.origin.preset.into());
    row("plugins", &|run| {
        let plugins = run.plugins.iter().map(|plugin| {
            let identity = plugin.identity.as_ref().map(|text| format!(" ({text})"));
            let (kind, name, version) = (&plugin.kind, &plugin.name, &plugin.version);
            format!("{kind} {name} {version}{}", identity.unwrap_or_default())
        });
        plugins.collect::<Vec<_>>().join("\n")
    });
    table.title = Some("Identity".into());
    table
}

fn processes(runs: &[RunReport], run: &RunReport) -> Table {
    let mut table = Table::new([
        Column::text("started"),
        Column::text("version"),
        Column::text("machine"),
        Column::number("peak memory", Format::Bytes),
        Column::text("command"),
    ]);
    table.columns[0].format = Some(Format::Time);
    table.title = Some(of_run(runs, run, "Processes that played it"));
    for process in &run.processes {
        let command: Vec<String> =
            process.command.iter().map(|word| crate::shell_quoted(word)).collect();
        table.row([
            process.started.into(),
            process.version.as_str().into(),
            format!("{}, {} threads", process.system, process.threads).into(),
            process.peak_memory.map(|bytes| bytes as f64).into(),
            command.join(" ").into(),
        ]);
    }
    table
}

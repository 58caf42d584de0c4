//! Win rates of several models against each other, for people.

use sppo_core::evaluation::PairReport;
use sppo_core::statistics::Interval;

use crate::terminal::{Alignment, Table, percent};

/// Longest name that stands above a column; longer ones are numbered.
const LONGEST_HEADING: usize = 16;

/// A table of the win rates of each row's model against each column's.
pub(super) fn matrix(models: &[&str], pairs: &[PairReport]) -> Table {
    let are_short = models.iter().all(|model| model.chars().count() <= LONGEST_HEADING);
    let heading = |(index, model): (usize, &&str)| match are_short {
        true => (*model).to_owned(),
        false => format!("({})", index + 1),
    };
    let headings: Vec<String> = models.iter().enumerate().map(heading).collect();
    let mut columns = vec![("win rate against", Alignment::Left)];
    columns.extend(headings.iter().map(|heading| (heading.as_str(), Alignment::Right)));
    let mut table = Table::new(&columns);
    for (row, heading) in models.iter().zip(&headings) {
        let name = if are_short { heading.clone() } else { format!("{heading} {row}") };
        let cells = models.iter().map(|column| cell(row, column, pairs));
        table.row([name].into_iter().chain(cells));
    }
    table
}

/// An explanation of the table.
pub(super) const MATRIX_NOTE: &str = "*: the interval does not hold 50 %\n";

fn cell(row: &str, column: &str, pairs: &[PairReport]) -> String {
    let found = pairs.iter().find_map(|pair| match (pair.first == row, pair.second == row) {
        (true, _) if pair.second == column => Some((pair.win_rate, pair.win_rate.mean)),
        (_, true) if pair.first == column => Some((pair.win_rate, 1.0 - pair.win_rate.mean)),
        _ => None,
    });
    let Some((Interval { low, high, .. }, mean)) = found else { return "-".into() };
    let mark = if (low..=high).contains(&0.5) { "" } else { "*" };
    format!("{}{mark}", percent(mean))
}

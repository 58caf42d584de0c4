//! Numbers and tables as people read them.

use std::time::Duration;

use sppo_core::statistics::Interval;

use super::Style;

/// `48s`, `1m 05s`, `2h 03m`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// `1 answer`, `5 answers`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// `12.3 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// An interval of a share: `60.7 to 70.2 %`.
pub(crate) fn interval(share: Interval) -> String {
    format!("{:.1} to {:.1} %", 100.0 * share.low, 100.0 * share.high)
}

/// A count or a rate with about three significant digits: `0.27`, `4.1`, `310`, `61 440`.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "-".into(),
        0.0..1.0 => format!("{value:.2}"),
        1.0..100.0 => format!("{value:.1}"),
        _ => grouped(value.round()),
    }
}

/// With its sign: `+3.1`, `-12.0`.
pub(crate) fn signed(value: f64) -> String {
    format!("{value:+.1}")
}

/// `92.9 MB`.
pub(crate) fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        0.0..1e6 => format!("{:.0} kB", count / 1e3),
        1e6..1e9 => format!("{:.1} MB", count / 1e6),
        _ => format!("{:.2} GB", count / 1e9),
    }
}

/// Thousands set apart by spaces.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |rest| ("-", rest));
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    format!("{sign}{text}")
}

/// Alignment of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alignment {
    Left,
    Right,
}

/// A table: headings, rows, and one alignment per column.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    headings: Vec<String>,
    alignments: Vec<Alignment>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(columns: &[(&str, Alignment)]) -> Self {
        Self {
            headings: columns.iter().map(|(heading, _)| (*heading).into()).collect(),
            alignments: columns.iter().map(|(_, alignment)| *alignment).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells stay empty.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as lines of text, each ended.
    pub(crate) fn render(&self, style: Style) -> String {
        let widths: Vec<usize> = (0..self.headings.len()).map(|at| self.width(at)).collect();
        let mut text = format!("{}\n", style.bold(&self.line(&self.headings, &widths)));
        for row in &self.rows {
            text.push_str(&self.line(row, &widths));
            text.push('\n');
        }
        text
    }

    fn width(&self, column: usize) -> usize {
        self.rows
            .iter()
            .chain([&self.headings])
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let padded: Vec<String> = cells
            .iter()
            .zip(widths)
            .zip(&self.alignments)
            .map(|((cell, &width), alignment)| match alignment {
                Alignment::Left => format!("{cell:<width$}"),
                Alignment::Right => format!("{cell:>width$}"),
            })
            .collect();
        padded.join("  ").trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ColorChoice;

    #[test]
    fn numbers_read_well() {
        assert_eq!(duration(Duration::from_millis(48_400)), "48s");
        assert_eq!(duration(Duration::from_secs(65)), "1m 05s");
        assert_eq!(duration(Duration::from_secs(7_380)), "2h 03m");
        assert_eq!(
            [0.268, 4.06, 310.2, 61_440.0, -1234.0].map(number),
            ["0.27", "4.1", "310", "61 440", "-1 234"]
        );
        assert_eq!([1, 5].map(|count| counted(count, "answer")), ["1 answer", "5 answers"]);
        assert_eq!(bytes(92_871_040), "92.9 MB");
        assert_eq!((signed(3.12), percent(0.705)), ("+3.1".into(), "70.5 %".into()));
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[("name", Alignment::Left), ("n", Alignment::Right)]);
        table.row(["start".into(), "7".into()]);
        table.row(["a".into(), "12".into()]);
        let plain = Style::new(ColorChoice::Never, true);
        assert_eq!(table.render(plain), "name    n\nstart   7\na      12\n");
    }
}

//! Small tables in plain text.

use super::Style;

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
    fn columns_line_up() {
        let mut table = Table::new(&[("name", Alignment::Left), ("n", Alignment::Right)]);
        table.row(["start".into(), "7".into()]);
        table.row(["a".into(), "12".into()]);
        let plain = Style::new(ColorChoice::Never, true);
        assert_eq!(table.render(plain), "name    n\nstart   7\na      12\n");
    }
}

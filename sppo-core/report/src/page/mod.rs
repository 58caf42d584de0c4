//! The blocks that a page is made of. They hold numbers and plain text; the scripts of the page draw them.

mod charts;
mod samples;

use serde::Serialize;
use sppo_core::statistics::Interval;

pub use charts::{Axis, BarSeries, Bars, Heatmap, IntervalSeries, Intervals, Lines, Mark, Series};
pub use samples::{Answer, SamplePrompt, SampleSet, SampleVerdict, Samples, Turn};

/// A page: its outcome in one sentence, warnings, and sections.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Page {
    /// Subject of the page, also the title of its window.
    pub title: String,
    /// The outcome in a sentence or two, above everything else.
    pub sentence: String,
    /// Short facts beside the title, for instance the model and the oracle.
    pub facts: Vec<String>,
    /// Warnings and remarks below the sentence.
    pub badges: Vec<Badge>,
    /// The sections, from top to bottom.
    pub sections: Vec<Section>,
    /// Seconds after which an open page is loaded anew, while there is more to come.
    pub reload_seconds: Option<u32>,
    /// Version of sppo that wrote the page.
    pub version: &'static str,
    /// Time of writing, in seconds since 1970.
    pub written: f64,
}

impl Page {
    /// A page without sections.
    #[must_use]
    pub fn new(title: impl Into<String>, sentence: impl Into<String>) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            title: title.into(),
            sentence: sentence.into(),
            facts: Vec::new(),
            badges: Vec::new(),
            sections: Vec::new(),
            reload_seconds: None,
            version: env!("CARGO_PKG_VERSION"),
            written: now.map_or(0.0, |elapsed| elapsed.as_secs_f64()),
        }
    }

    /// The page with another section, unless that is empty.
    #[must_use]
    pub fn section(mut self, section: Section) -> Self {
        if !section.blocks.is_empty() {
            self.sections.push(section);
        }
        self
    }
}

/// A warning or remark.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Badge {
    /// Weight of it.
    pub level: Level,
    /// One sentence.
    pub text: String,
}

/// Weight of a badge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Something that makes the result doubtful.
    Warning,
    /// Something to know.
    Note,
}

/// A section.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Section {
    /// Its name within the page's address.
    pub id: &'static str,
    /// The heading.
    pub title: String,
    /// An explanation below the heading.
    pub note: Option<String>,
    /// Its blocks, in order; two narrow ones stand side by side where there is room.
    pub blocks: Vec<Block>,
}

impl Section {
    /// A section without blocks.
    #[must_use]
    pub fn new(id: &'static str, title: impl Into<String>) -> Self {
        Self { id, title: title.into(), note: None, blocks: Vec::new() }
    }

    /// The section with an explanation below its heading.
    #[must_use]
    pub fn note(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }

    /// The section with another block.
    #[must_use]
    pub fn block(mut self, block: Block) -> Self {
        self.blocks.push(block);
        self
    }
}

/// A block of a section.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Block {
    /// Numbers in large type.
    Figures {
        /// The numbers.
        items: Vec<Figure>,
    },
    /// Lines over a common axis, with a cursor.
    Lines(Lines),
    /// Means with their intervals.
    Intervals(Intervals),
    /// Horizontal bars.
    Bars(Bars),
    /// A matrix of probabilities.
    Heatmap(Heatmap),
    /// A table.
    Table(Table),
    /// Answers of several models to the same prompts, side by side.
    Samples(Samples),
    /// Blocks that open on a click; on paper they are open.
    Details {
        /// The line to click on.
        summary: String,
        /// The blocks within.
        blocks: Vec<Block>,
    },
    /// Text to be copied, such as a command.
    Code {
        /// The text.
        text: String,
    },
    /// A paragraph.
    Text {
        /// The text.
        text: String,
    },
}

/// Forms of numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// As short as three or four digits make it.
    #[default]
    Number,
    /// A whole number with separators.
    Integer,
    /// A share between 0 and 1 as a percentage.
    Percent,
    /// With its sign.
    Signed,
    /// A small number as a multiple of a power of ten.
    Scientific,
    /// Seconds, as hours, minutes and seconds.
    Duration,
    /// Bytes, in binary units.
    Bytes,
    /// Seconds since 1970, as date and time.
    Time,
}

/// A value of a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Cell {
    /// Nothing is known.
    Empty,
    /// A number.
    Number(f64),
    /// Text.
    Text(String),
    /// A mean with its interval.
    Interval(Interval),
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        if value.is_finite() { Self::Number(value) } else { Self::Text(value.to_string()) }
    }
}

impl From<usize> for Cell {
    fn from(value: usize) -> Self {
        Self::Number(value as f64)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Interval> for Cell {
    fn from(interval: Interval) -> Self {
        Self::Interval(interval)
    }
}

impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Empty, Into::into)
    }
}

/// A number in large type.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Name of the number.
    pub label: String,
    /// The number.
    pub value: Cell,
    /// Its form.
    pub format: Format,
    /// A line below it.
    pub detail: Option<String>,
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Table {
    /// The heading.
    pub title: Option<String>,
    /// An explanation below it.
    pub note: Option<String>,
    /// The columns.
    pub columns: Vec<Column>,
    /// The rows, each with one value per column.
    pub rows: Vec<Vec<Cell>>,
    /// Whether it takes the whole width.
    pub wide: bool,
}

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Self { columns: columns.into_iter().collect(), wide: true, ..Self::default() }
    }

    /// The table without the columns that hold nothing.
    #[must_use]
    pub fn without_empty_columns(mut self) -> Self {
        let is_kept: Vec<bool> = (0..self.columns.len())
            .map(|column| self.rows.iter().any(|row| row.get(column) != Some(&Cell::Empty)))
            .collect();
        fn keep<T>(values: &mut Vec<T>, is_kept: &[bool]) {
            let mut is_kept = is_kept.iter();
            values.retain(|_| is_kept.next().copied().unwrap_or(true));
        }
        keep(&mut self.columns, &is_kept);
        self.rows.iter_mut().for_each(|row| keep(row, &is_kept));
        self
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Form of its numbers; `None` for a column of text.
    pub format: Option<Format>,
}

impl Column {
    /// A column of text, to the left.
    #[must_use]
    pub fn text(name: impl Into<String>) -> Self {
        Self { name: name.into(), format: None }
    }

    /// A column of numbers, to the right.
    #[must_use]
    pub fn number(name: impl Into<String>, format: Format) -> Self {
        Self { name: name.into(), format: Some(format) }
    }
}

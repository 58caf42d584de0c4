//! The blocks that a page is made of. They hold numbers and plain text; the scripts of the page draw them.

use serde::Serialize;
use sppo_core::statistics::Interval;

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

/// An axis of numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Axis {
    /// Name and unit.
    pub label: String,
    /// Form of its numbers.
    pub format: Format,
    /// Whether equal distances are equal factors.
    pub logarithmic: bool,
}

impl Axis {
    /// A linear axis.
    #[must_use]
    pub fn new(label: impl Into<String>, format: Format) -> Self {
        Self { label: label.into(), format, logarithmic: false }
    }
}

/// Lines over a common axis.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Lines {
    /// The heading.
    pub title: String,
    /// An explanation below it.
    pub note: Option<String>,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// The lines.
    pub series: Vec<Series>,
    /// Names of places on the horizontal axis, where a vertical line stands.
    pub marks: Vec<Mark>,
    /// Whether it takes the whole width.
    pub wide: bool,
}

/// A line.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Its colour: a number of the palette, from 0.
    pub color: usize,
    /// Whether it is dashed: a target or a bound, not a measurement.
    pub dashed: bool,
    /// Whether it is hidden until its name is clicked on.
    pub hidden: bool,
    /// Places on the horizontal axis, rising.
    pub x: Vec<f64>,
    /// Values there; `None` interrupts the line.
    pub y: Vec<Option<f64>>,
}

/// A name of a place on the horizontal axis.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mark {
    /// The place.
    pub x: f64,
    /// The name.
    pub label: String,
}

/// Means with their intervals, one group for each label.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Intervals {
    /// The heading.
    pub title: String,
    /// An explanation below it.
    pub note: Option<String>,
    /// The vertical axis.
    pub y: Axis,
    /// Names of the groups.
    pub labels: Vec<String>,
    /// A value to compare with, drawn as a line.
    pub reference: Option<f64>,
    /// The means.
    pub series: Vec<IntervalSeries>,
    /// Whether it takes the whole width.
    pub wide: bool,
}

/// Means of one kind, one for each label.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct IntervalSeries {
    /// Its name.
    pub name: String,
    /// Its colour: a number of the palette, from 0.
    pub color: usize,
    /// Whether its points are hollow: the same data, seen in another way.
    pub hollow: bool,
    /// The means; an interval without width is drawn as a point.
    pub points: Vec<Option<Interval>>,
}

/// Horizontal bars, one for each label.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Bars {
    /// The heading.
    pub title: String,
    /// An explanation below it.
    pub note: Option<String>,
    /// Form of the numbers.
    pub format: Format,
    /// Names of the bars.
    pub labels: Vec<String>,
    /// The parts that the bars are made of, one after the other.
    pub series: Vec<BarSeries>,
    /// Whether it takes the whole width.
    pub wide: bool,
}

/// A part of every bar.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BarSeries {
    /// Its name.
    pub name: String,
    /// Its colour: a number of the palette, from 0.
    pub color: usize,
    /// Its length in each bar.
    pub values: Vec<Option<f64>>,
}

/// A matrix of probabilities: row against column, one half in neutral colour.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Heatmap {
    /// The heading.
    pub title: String,
    /// An explanation below it.
    pub note: Option<String>,
    /// Name of what rows and columns are.
    pub axis: String,
    /// Names of the rows.
    pub rows: Vec<String>,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The probabilities, row by row; `None` where nothing is known.
    pub cells: Vec<Vec<Option<f64>>>,
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

/// Answers of the models of one run or several, side by side.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Samples {
    /// The sets to choose from.
    pub sets: Vec<SampleSet>,
}

/// Answers of several models to the same prompts. The first model is the one that the others are compared with.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SampleSet {
    /// Name of the set, for instance of the run.
    pub name: String,
    /// Names of the models.
    pub models: Vec<String>,
    /// The prompts.
    pub prompts: Vec<SamplePrompt>,
    /// Number of prompts that were left out, because a page must not become too large.
    pub left_out: usize,
}

/// A prompt with its answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SamplePrompt {
    /// The prompt's id.
    pub id: u64,
    /// The conversation.
    pub turns: Vec<Turn>,
    /// The answers, by model and sample.
    pub answers: Vec<Vec<Answer>>,
    /// The verdicts on each model's answers against the first model's, by model and sample; empty where they
    /// are not known.
    pub verdicts: Vec<Vec<SampleVerdict>>,
}

/// A turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Turn {
    /// The speaker, for instance `user`.
    pub role: String,
    /// The text.
    pub text: String,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// Its length in tokens.
    pub tokens: usize,
    /// Whether the model ended it itself.
    pub ended: bool,
}

/// A verdict: the probability that an answer beats that of the first model, in both orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SampleVerdict {
    /// Probability where the oracle reads the answer first.
    pub read_first: f64,
    /// Probability where it reads it second.
    pub read_second: f64,
}

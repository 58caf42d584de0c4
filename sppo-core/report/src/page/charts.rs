//! Charts: lines, intervals, bars and matrices.

use serde::Serialize;
use sppo_core::statistics::Interval;

use super::Format;

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

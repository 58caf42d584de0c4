//! Comparison of runs that differ in some settings: the file that describes it, its runs, the work that they
//! share, the judgments between them, and the outcome.

mod cells;
mod directory;
mod file;
mod outcome;
mod report;
mod sharing;
mod verdicts;

pub use cells::Cell;
pub use directory::ComparisonDirectory;
pub use file::{Axis, Budget, Choice, ComparisonFile};
pub use outcome::{PlayedCell, Referee, START};
pub use report::{ArmIteration, ArmPair, ArmReport, ComparisonReport, RunSummary, Time, Work};
pub use sharing::share;

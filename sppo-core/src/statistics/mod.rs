//! Numbers about judged answers, as pure functions: confidence intervals, win rates, win rates at equal
//! length, and rankings.

mod bootstrap;
mod bradley_terry;
mod duels;
#[cfg(test)]
mod golden;
pub mod length_control;
mod logistic;

pub use bootstrap::{Bootstrap, Interval};
pub use bradley_terry::{STRENGTH_PENALTY, bradley_terry};
pub(crate) use duels::crossed;
pub use duels::{Duel, Duels};
pub use logistic::{LogisticData, logistic_regression};

//! Quality and cost of an oracle: its habits counted over verdicts, its agreement with labels, and the requests,
//! tokens and money that a service takes.

mod check;
mod counts;
mod service;

pub use check::{Calibration, CalibrationBin, LabelledVerdict, OracleCheck, SubsetAccuracy};
pub use counts::VerdictCounts;
pub use service::{Prices, ServiceCounters, ServiceMeter};

//! The oracle `http`: judges and reward models that answer over HTTP.
//!
//! A comparison becomes questions (`round`): which of two answers is better, in both orders, or how good
//! each answer is. A `protocol` lays questions out as requests and reads the replies. What is known
//! already comes from the `cache`; the rest goes through the `transport`, which balances endpoints,
//! retries, and knows when to give up. Every judgment is on disk before it is used, so none is asked for
//! twice.
//!
//! [`HttpConfig`] describes all settings.

mod address;
mod cache;
mod config;
mod credentials;
mod judgment;
mod oracle;
mod protocol;
mod round;
mod templates;
mod transport;

pub use config::{
    CacheConfig, ConcurrencyConfig, HttpConfig, JudgeConfig, KeyHeader, Orders, ProtocolName,
    RetryConfig, ScoringConfig, TimeoutConfig, Undecided,
};
pub use oracle::HttpOracle;

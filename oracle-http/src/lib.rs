//! The oracle `http`: judges and reward models that answer over HTTP.
//!
//! A comparison becomes questions (`round`): which of two responses is better, in both orders, or how good each
//! response is, in one way or several, which `combination` makes one verdict of. A `protocol` turns questions into
//! requests and reads the replies. Verdicts that are known already come from the `cache`; the rest is sent by
//! `sppo-http-transport`, which balances endpoints, retries, and knows when to give up; `exchange` tells it what
//! replies mean, and `refusals` what it means when the service refuses. `signal` looks for judges that tell nothing
//! apart. `call` is one call of the oracle. Every verdict is on disk before it is used, so none is asked for twice.
//!
//! [`HttpConfig`] describes all settings.

mod cache;
mod call;
mod combination;
mod config;
mod exchange;
#[cfg(fuzzing)]
pub mod fuzzing;
mod oracle;
mod protocol;
mod question;
mod refusals;
mod round;
mod signal;
mod templates;

pub use config::{
    CacheConfig, DecisionConfig, GenrmConfig, GroupwiseConfig, HttpConfig, JudgeConfig,
    ProtocolName, RubricConfig, RubricJudge, Scope, ScoringConfig, Undecided,
};
pub use oracle::HttpOracle;
pub use sppo_http_transport::{ConcurrencyConfig, KeyHeader, RetryConfig, TimeoutConfig};
pub use sppo_plugin::pairwise::Orders;

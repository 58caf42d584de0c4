//! Rules that every plugin of a kind must keep: `sppo plugin check` and authors' own tests run them.

mod backend;
mod oracle;

pub use backend::{check_backend, example_batch};
pub use oracle::check_oracle;
use serde_json::{Value, json};

/// Outcome of one check.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The rule holds.
    Passed,
    /// The rule holds, with a remark.
    Remark(String),
    /// A defect.
    Failed(String),
}

/// One check and its result.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// The rule that must hold.
    pub check: &'static str,
    /// The result.
    pub outcome: Outcome,
}

impl Finding {
    /// The result of a check: `Ok`, or a description of the defect.
    #[must_use]
    pub fn new(check: &'static str, result: Result<(), String>) -> Self {
        let outcome = result.map_or_else(Outcome::Failed, |()| Outcome::Passed);
        Self { check, outcome }
    }

    /// Whether this is a defect.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_))
    }
}

/// Checks that the plugin refuses a setting that it does not have.
fn unknown_setting<T: ?Sized>(create: &mut dyn FnMut(Value) -> Result<Box<T>, String>) -> Finding {
    Finding::new(
        "a setting that does not exist is refused",
        match create(json!({"no such setting": 1})) {
            Err(_) => Ok(()),
            Ok(_) => {
                Err("it was accepted: put `#[serde(deny_unknown_fields)]` on the settings".into())
            }
        },
    )
}

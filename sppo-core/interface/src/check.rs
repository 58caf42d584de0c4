//! Range checks of settings.

use crate::PluginError;

/// A setting whose value is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct InvalidSetting {
    /// The dotted key within the section that was checked; empty for the section itself.
    pub key: String,
    /// The fault.
    pub message: String,
    /// The remedy.
    pub hint: String,
}

/// Outcome of a check.
pub type Check = Result<(), InvalidSetting>;

impl InvalidSetting {
    /// The same refusal, seen from the table that holds the section under `name`.
    #[must_use]
    pub fn within(self, name: &str) -> Self {
        let key = if self.key.is_empty() { name.into() } else { format!("{name}.{}", self.key) };
        Self { key, ..self }
    }
}

impl From<InvalidSetting> for PluginError {
    fn from(refusal: InvalidSetting) -> Self {
        Self::configuration(refusal.to_string()).with_hint(refusal.hint)
    }
}

/// Refuses the setting `key` unless `holds`.
///
/// # Errors
/// When it does not.
pub fn require(
    holds: bool,
    key: &str,
    message: impl Into<String>,
    hint: impl Into<String>,
) -> Check {
    match holds {
        true => Ok(()),
        false => {
            Err(InvalidSetting { key: key.into(), message: message.into(), hint: hint.into() })
        }
    }
}

/// Refuses all but finite numbers above 0.
///
/// # Errors
/// When `value` is another.
pub fn positive(key: &str, value: f64) -> Check {
    require(
        value.is_finite() && value > 0.0,
        key,
        format!("{value} is not a number above 0"),
        "give a number above 0",
    )
}

/// Refuses all but finite numbers from 0.
///
/// # Errors
/// When `value` is another.
pub fn not_negative(key: &str, value: f64) -> Check {
    require(
        value.is_finite() && value >= 0.0,
        key,
        format!("{value} is not a number from 0"),
        "give 0 or a number above it",
    )
}

/// Refuses 0.
///
/// # Errors
/// When `value` is 0.
pub fn at_least_one(key: &str, value: u64) -> Check {
    require(value >= 1, key, "must be at least 1", "give a whole number from 1")
}

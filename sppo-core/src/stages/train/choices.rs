//! Settings that are one of several kinds of value: `true` or `"auto"`, a number or a time.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const AUTO: &str = "auto";

/// Choice of whether a backward pass computes activations again instead of keeping them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recomputation {
    /// Only if the work would not fit into memory otherwise, as far as the backend predicts it: `"auto"`.
    #[default]
    Auto,
    /// In any case: `true`.
    Always,
    /// In no case: `false`.
    Never,
}

impl Serialize for Recomputation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Always => serializer.serialize_bool(true),
            Self::Never => serializer.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for Recomputation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfWord;

        impl Visitor<'_> for OfWord {
            type Value = Recomputation;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("true, false or \"auto\"")
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Recomputation, E> {
                Ok(if value { Recomputation::Always } else { Recomputation::Never })
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Recomputation, E> {
                match value {
                    AUTO => Ok(Recomputation::Auto),
                    other => Err(E::invalid_value(Unexpected::Str(other), &self)),
                }
            }
        }

        deserializer.deserialize_any(OfWord)
    }
}

impl JsonSchema for Recomputation {
    fn schema_name() -> Cow<'static, str> {
        "Recomputation".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "enum": [AUTO, true, false] })
    }
}

/// Distance between two commits: a whole number of steps, or a time such as `"15m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitInterval {
    /// A number of optimiser steps.
    Steps(u64),
    /// A time, as text a whole number with `s`, `m` or `h`.
    Time(Duration),
}

/// Units of time and their seconds, the longest first.
const UNITS: [(char, u64); 3] = [('h', 3600), ('m', 60), ('s', 1)];

impl FromStr for CommitInterval {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (unit, seconds) = UNITS.into_iter().find(|(unit, _)| text.ends_with(*unit)).ok_or(())?;
        let count: u64 = text.strip_suffix(unit).ok_or(())?.parse().map_err(drop)?;
        let seconds = count.checked_mul(seconds).filter(|seconds| *seconds > 0).ok_or(())?;
        Ok(Self::Time(Duration::from_secs(seconds)))
    }
}

impl Serialize for CommitInterval {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Steps(steps) => serializer.serialize_u64(*steps),
            Self::Time(time) => {
                let all = time.as_secs();
                let whole = UNITS.into_iter().find(|(_, seconds)| all.is_multiple_of(*seconds));
                let (unit, seconds) = whole.unwrap_or(('s', 1));
                serializer.collect_str(&format_args!("{}{unit}", all / seconds))
            }
        }
    }
}

impl<'de> Deserialize<'de> for CommitInterval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfNumber;

        impl Visitor<'_> for OfNumber {
            type Value = CommitInterval;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(
                    "a whole number of steps, or a time such as \"15m\", \"90s\" or \"2h\"",
                )
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<CommitInterval, E> {
                Ok(CommitInterval::Steps(value))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<CommitInterval, E> {
                let steps = u64::try_from(value);
                steps
                    .map(CommitInterval::Steps)
                    .map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<CommitInterval, E> {
                value.parse().map_err(|()| E::invalid_value(Unexpected::Str(value), &self))
            }
        }

        deserializer.deserialize_any(OfNumber)
    }
}

impl JsonSchema for CommitInterval {
    fn schema_name() -> Cow<'static, str> {
        "CommitInterval".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["integer", "string"], "minimum": 0 })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read<T: for<'de> Deserialize<'de>>(value: &Value) -> Result<T, String> {
        T::deserialize(value).map_err(|error| error.to_string())
    }

    #[test]
    fn intervals_are_steps_or_times_and_written_as_they_are_read() {
        for (value, seconds) in [("15m", 900), ("90s", 90), ("2h", 7200)] {
            let interval: CommitInterval = read(&json!(value)).unwrap();
            assert_eq!(interval, CommitInterval::Time(Duration::from_secs(seconds)));
            assert_eq!(json!(interval), json!(value));
        }
        assert_eq!(json!(read::<CommitInterval>(&json!("120s")).unwrap()), json!("2m"));
        assert_eq!(read(&json!(25)), Ok(CommitInterval::Steps(25)));
        for refused in
            [json!("15"), json!("m"), json!("-1m"), json!("0s"), json!(-3), json!("1 day")]
        {
            let error = read::<CommitInterval>(&refused).unwrap_err();
            assert!(error.contains("a time such as \"15m\""), "{refused}: {error}");
        }
    }

    #[test]
    fn recomputation_is_a_flag_or_automatic() {
        for value in [json!(true), json!(false), json!("auto")] {
            assert_eq!(json!(read::<Recomputation>(&value).unwrap()), value);
        }
        let error = read::<Recomputation>(&json!("sometimes")).unwrap_err();
        assert!(error.contains("true, false or \"auto\""), "{error}");
    }
}

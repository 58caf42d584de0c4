//! Messages about a run to an address of the user's: the section `[notify]`, and what is sent. The program sends it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::observer::IterationReport;
use crate::plugin::check::{self, Check};
use crate::statistics::Interval;

/// Settings of messages about a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NotifySettings {
    /// Address that gets a message after each iteration and at the end (HTTP POST, JSON); `$NAME` takes it from the
    /// environment variable NAME, for an address that is a secret. It may be changed when a run is resumed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

impl NotifySettings {
    /// Whether there is nothing to send to.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.url.is_none()
    }

    /// Checks the form of the address.
    ///
    /// # Errors
    /// Names the key at fault.
    pub fn check(&self) -> Check {
        check::require(
            self.url.as_deref().is_none_or(|url| is_variable(url) || is_address(url)),
            "url",
            "this is neither an address nor the name of an environment variable",
            "give an address that begins with https:// or http://, or `$` and the name of the variable that holds it",
        )
    }

    /// The address, if there is one.
    ///
    /// # Errors
    /// When the environment variable that should hold it does not. The error shows no address.
    pub fn address(&self) -> Result<Option<String>> {
        let Some(url) = &self.url else { return Ok(None) };
        let Some(variable) = url.strip_prefix('$') else { return Ok(Some(url.clone())) };
        match std::env::var(variable).ok().filter(|value| is_address(value)) {
            Some(address) => Ok(Some(address)),
            None => Err(Error::configuration(
                "notify.url",
                format!("the environment variable {variable} holds no address"),
            )
            .with_hint("export it, or leave `notify.url` out")),
        }
    }
}

fn is_variable(text: &str) -> bool {
    let name = text.strip_prefix('$').unwrap_or_default();
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_address(text: &str) -> bool {
    ["https://", "http://"]
        .iter()
        .any(|scheme| text.len() > scheme.len() && text.starts_with(scheme))
}

/// Occasion of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    /// An iteration is complete.
    Iteration,
    /// The run is at its end.
    Finished,
    /// The run was stopped on request.
    Stopped,
    /// The run ended with an error.
    Failed,
}

/// A message about a run. It names no path.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Notification<'a> {
    /// The occasion.
    pub event: Occasion,
    /// Name of the run.
    pub run: &'a str,
    /// One sentence for people; chats show it.
    pub text: String,
    /// The last iteration that is complete; 0 before the first is.
    pub iteration: u32,
    /// Iterations in all.
    pub iterations: u32,
    /// Its win rate against the starting model.
    pub win_rate: Option<Interval>,
}

impl<'a> Notification<'a> {
    /// A message on this occasion, with the report of the last complete iteration, if there is one.
    #[must_use]
    pub fn new(
        event: Occasion,
        run: &'a str,
        iterations: u32,
        last: Option<&IterationReport>,
    ) -> Self {
        let iteration = last.map_or(0, |report| report.iteration);
        let win_rate = last.and_then(|report| report.win_rate);
        let happened = match event {
            Occasion::Iteration => format!("iteration {iteration} of {iterations} is complete"),
            Occasion::Finished => format!("all {iterations} iterations are complete"),
            Occasion::Stopped => {
                format!("stopped on request after iteration {iteration} of {iterations}")
            }
            Occasion::Failed => format!("failed after iteration {iteration} of {iterations}"),
        };
        let rate = win_rate.map_or(String::new(), |Interval { mean, low, high }| {
            let [mean, low, high] = [mean, low, high].map(|share| 100.0 * share);
            format!("; win rate {mean:.1} % ({low:.1} to {high:.1})")
        });
        let text = format!("{run}: {happened}{rate}");
        Self { event, run, text, iteration, iterations, win_rate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_stands_in_the_settings_or_in_the_environment() {
        let settings = |url: &str| NotifySettings { url: Some(url.into()) };
        for url in ["https://example.org/hook", "http://127.0.0.1:8000", "$HOOK"] {
            assert!(settings(url).check().is_ok(), "{url}");
        }
        for url in ["", "example.org", "$", "$A B", "https://", "file:///etc"] {
            assert!(settings(url).check().is_err(), "{url}");
        }
        let error = settings("$SPPO_NO_SUCH_VARIABLE").address().unwrap_err().to_string();
        assert!(error.contains("SPPO_NO_SUCH_VARIABLE holds no address"), "{error}");
        assert_eq!(NotifySettings::default().address().unwrap(), None);
    }

    #[test]
    fn a_message_says_it_in_a_sentence() {
        let mut report = IterationReport::new(2, "/home/somebody".into());
        report.win_rate = Some(Interval { mean: 0.677, low: 0.632, high: 0.72 });
        let message = Notification::new(Occasion::Iteration, "mine", 3, Some(&report));
        let json = serde_json::to_value(&message).unwrap();
        assert_eq!(
            json["text"],
            "mine: iteration 2 of 3 is complete; win rate 67.7 % (63.2 to 72.0)"
        );
        assert_eq!((&json["event"], &json["iteration"]), (&"iteration".into(), &2.into()));
        assert!(!json.to_string().contains("somebody"));
        let message = Notification::new(Occasion::Failed, "mine", 3, None);
        assert_eq!(message.text, "mine: failed after iteration 0 of 3");
    }
}

//! The ways in which a group of processes fails, each told in one sentence.

use std::time::Duration;

use sppo_model::ModelError;
use sppo_plugin::PluginError;

/// A way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The launcher's environment variables are missing, wrong or contradictory.
    Launch,
    /// A rank did not come to the meeting in time.
    Missing,
    /// A rank is another build of the plugin, or of another number of ranks.
    Mismatch,
    /// A rank's process ended.
    Died,
    /// A rank left, and said why.
    Left,
    /// A rank does not answer: it is stopped, or the network to it is down.
    Silent,
    /// A rank answers, but did not come to an operation in time.
    Late,
    /// Ranks called different operations.
    Desynchronised,
    /// The engine failed by itself.
    Engine,
}

impl Fault {
    const ALL: [(Self, &str); 9] = [
        (Self::Launch, "launch"),
        (Self::Missing, "missing"),
        (Self::Mismatch, "mismatch"),
        (Self::Died, "died"),
        (Self::Left, "left"),
        (Self::Silent, "silent"),
        (Self::Late, "late"),
        (Self::Desynchronised, "desynchronised"),
        (Self::Engine, "engine"),
    ];

    /// A word for it, as ranks tell it to each other.
    pub(super) fn word(self) -> &'static str {
        Self::ALL.iter().find(|(fault, _)| *fault == self).map_or("engine", |(_, word)| word)
    }

    /// The fault of a word.
    pub(super) fn from_word(word: &str) -> Self {
        Self::ALL.iter().find(|(_, known)| *known == word).map_or(Self::Engine, |(fault, _)| *fault)
    }
}

/// A failure of a group: what happened to which rank on which host, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupError {
    fault: Fault,
    rank: Option<usize>,
    message: String,
    advice: String,
}

impl GroupError {
    pub(super) fn new(fault: Fault, rank: Option<usize>, message: impl Into<String>) -> Self {
        let advice = match fault {
            Fault::Launch | Fault::Mismatch => "",
            Fault::Missing => {
                "see that the launcher starts all of them, and that they reach each other"
            }
            Fault::Desynchronised => "this is a mistake in sppo, please report it",
            _ => "start all ranks again with --resume: what was committed is kept",
        };
        Self { fault, rank, message: message.into(), advice: advice.into() }
    }

    pub(super) fn with_advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }

    /// The way of failing.
    #[must_use]
    pub fn fault(&self) -> Fault {
        self.fault
    }

    /// The rank at fault, where one is.
    #[must_use]
    pub fn rank(&self) -> Option<usize> {
        self.rank
    }

    /// The remedy, which the displayed sentence leaves out; may be empty.
    #[must_use]
    pub fn advice(&self) -> &str {
        &self.advice
    }

    /// A line that another rank turns back into the error.
    pub(super) fn to_line(&self) -> String {
        let rank = self.rank.map_or(-1, |rank| i64::try_from(rank).unwrap_or(-1));
        let one_line = |text: &str| text.replace(['\n', '\t'], " ");
        let (message, advice) = (one_line(&self.message), one_line(&self.advice));
        format!("{}\t{rank}\t{message}\t{advice}", self.fault.word())
    }

    /// The error of a line.
    pub(super) fn from_line(line: &str) -> Self {
        let mut parts = line.split('\t');
        let mut next = || parts.next().unwrap_or_default();
        let (fault, rank) = (Fault::from_word(next()), next().parse().ok());
        Self { fault, rank, message: next().into(), advice: next().into() }
    }
}

impl std::fmt::Display for GroupError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for GroupError {}

impl From<GroupError> for PluginError {
    fn from(error: GroupError) -> Self {
        let told = match error.fault {
            Fault::Launch => Self::configuration(error.message),
            _ => Self::failed(error.message),
        };
        if error.advice.is_empty() { told } else { told.with_hint(error.advice) }
    }
}

impl From<GroupError> for ModelError {
    fn from(error: GroupError) -> Self {
        let GroupError { message, advice, .. } = error;
        Self::Backend(if advice.is_empty() { message } else { format!("{message}; {advice}") })
    }
}

/// Seconds for people.
pub(super) fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds.fract() < 0.05 { format!("{seconds:.0}") } else { format!("{seconds:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_crosses_to_another_rank_whole() {
        for (fault, _) in Fault::ALL {
            for rank in [None, Some(0), Some(17)] {
                let error = GroupError::new(fault, rank, "rank 17 on host b: no, \"never\"");
                assert_eq!(GroupError::from_line(&error.to_line()), error);
            }
        }
    }
}

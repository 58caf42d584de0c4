//! The criterion `ended`: a response that the model ended itself is better than one that was cut off.

use super::Criterion;
use crate::text::Reading;

/// 1 for a response that ended by itself, 0 for one that was cut off.
pub(crate) struct Ended;

impl Criterion for Ended {
    fn measures(&self, reading: &Reading<'_>) -> Vec<Option<f64>> {
        let measure = |finished| if finished { 1.0 } else { 0.0 };
        reading.responses.iter().map(|response| response.finished.map(measure)).collect()
    }
}

#[cfg(test)]
mod tests {
    use sppo_plugin::{Candidate, FinishReason};

    use super::*;
    use crate::criteria::Vote;
    use crate::criteria::testing::vote_on_candidates;

    #[test]
    fn a_finished_answer_wins_and_an_unknown_one_ties() {
        let vote = |first, second| {
            let candidates = [first, second]
                .map(|finish_reason| Candidate { finish_reason, ..Candidate::from_text("x") });
            vote_on_candidates(&Ended, "?", candidates)
        };
        let (stop, length) = (Some(FinishReason::Stop), Some(FinishReason::Length));
        assert_eq!(vote(stop, length), Vote::First);
        assert_eq!(vote(length, stop), Vote::Second);
        assert_eq!(vote(stop, stop), Vote::Tie);
        assert_eq!(vote(None, length), Vote::Tie);
        assert_eq!(vote(stop, None), Vote::Tie);
    }
}

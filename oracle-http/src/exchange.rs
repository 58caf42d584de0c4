//! Replies of judges: how they are read, remembered and counted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sppo_http_transport::{Exchange, Malformed};
use sppo_plugin::PluginError;

use crate::cache::{Cache, Key};
use crate::protocol::Protocol;
use crate::question::{InvalidVerdict, JudgeReply};

/// The questions of a request: the number of each among those of the call, and its key.
pub(crate) type Questions = Vec<(usize, Key)>;

/// Totals over all replies.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) verdicts: u64,
    pub(crate) invalid_verdicts: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
}

/// Reads the replies of a judge, and has every verdict on disk before it is used.
pub(crate) struct JudgeExchange {
    protocol: Arc<dyn Protocol>,
    /// Repetitions of a question whose verdict is invalid.
    invalid_attempts: u32,
    cache: Mutex<Cache>,
    counters: Mutex<Counters>,
}

impl JudgeExchange {
    pub(crate) fn new(protocol: Arc<dyn Protocol>, invalid_attempts: u32, cache: Cache) -> Self {
        let (cache, counters) = (Mutex::new(cache), Mutex::default());
        Self { protocol, invalid_attempts, cache, counters }
    }

    pub(crate) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn counters(&self) -> Counters {
        *self.lock_counters()
    }

    fn count_tokens(&self, reply: &JudgeReply) {
        let mut counters = self.lock_counters();
        counters.prompt_tokens += reply.prompt_tokens;
        counters.completion_tokens += reply.completion_tokens;
    }

    fn lock_counters(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Exchange for JudgeExchange {
    type Job = Questions;
    type Content = JudgeReply;

    fn read(
        &self,
        questions: &Questions,
        body: &[u8],
        clean: &dyn Fn(&str) -> String,
    ) -> Result<JudgeReply, Malformed> {
        let mut reply = self.protocol.read(body, questions.len())?;
        for InvalidVerdict(said) in reply.verdicts.iter_mut().filter_map(|one| one.as_mut().err()) {
            *said = clean(said);
        }
        self.count_tokens(&reply);
        let pairs = questions.iter().zip(&reply.verdicts);
        self.cache().stage(pairs.filter_map(|((_, key), verdict)| {
            let verdict = verdict.as_ref().ok()?;
            Some((*key, *verdict))
        }));
        Ok(reply)
    }

    fn commit(&self) -> Result<(), PluginError> {
        self.cache().write_staged()
    }

    fn asks_again(&self, reply: &JudgeReply, repeats: u32) -> bool {
        repeats < self.invalid_attempts && reply.verdicts.iter().any(Result::is_err)
    }

    fn settled(&self, reply: &JudgeReply) {
        let mut counters = self.lock_counters();
        let invalid = reply.verdicts.iter().filter(|verdict| verdict.is_err()).count();
        counters.invalid_verdicts += invalid as u64;
        counters.verdicts += (reply.verdicts.len() - invalid) as u64;
    }

    fn refusal_hint(&self, status: u16, message: &str) -> Option<String> {
        let lower = message.to_lowercase();
        let hint = match status {
            _ if lower.contains("logprob") => {
                "set `judge.log_probs = false`: this model does not give log-probabilities"
            }
            _ if lower.contains("max_completion_tokens") => {
                "set `judge.max_tokens_field = \"max_completion_tokens\"`"
            }
            404 | 405 => "check `endpoints`, `protocol` and `model`",
            413 => "lower `questions_per_request`, or shorten the answers",
            _ => return None,
        };
        Some(hint.into())
    }

    fn resume_hint(&self) -> String {
        "see what is wrong with the service, then give the same command again (`sppo run` with \
         `--resume`): no judgment that was made so far is asked for again"
            .into()
    }
}

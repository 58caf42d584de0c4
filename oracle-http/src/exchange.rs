//! Replies of judges: how they are read, remembered and counted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sppo_http_transport::{Exchange, Malformed, Refusal};
use sppo_plugin::PluginError;

use crate::cache::{Cache, Key};
use crate::config::HttpConfig;
use crate::protocol::{NOT_A_NUMBER, Protocol};
use crate::question::{Certainty, InvalidVerdict, JudgeReply, Tables};
use crate::refusals::Refusals;

/// Characters of a refusal that are shown.
const EXCERPT: usize = 300;
/// Refusals that are set aside while the judge has answered nothing yet.
const UNANSWERED_REFUSALS: u64 = 8;

/// The questions of a request: the number of each among those of the call, and its key.
pub(crate) type Questions = Vec<(usize, Key)>;

/// Totals over all replies.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) verdicts: u64,
    pub(crate) invalid_verdicts: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    /// Requests that were refused and set aside.
    refused: u64,
}

/// Reads the replies of a judge, and has every verdict on disk before it is used.
pub(crate) struct JudgeExchange {
    protocol: Arc<dyn Protocol>,
    /// Repetitions of a question whose verdict is invalid.
    invalid_attempts: u32,
    tables: Tables,
    protocol_name: &'static str,
    refusals: Refusals,
    /// Whether the judge has answered in earlier processes.
    is_known: bool,
    cache: Mutex<Cache>,
    counters: Mutex<Counters>,
    warned_of_log_probs: AtomicBool,
}

impl JudgeExchange {
    pub(crate) fn new(protocol: Arc<dyn Protocol>, config: &HttpConfig, cache: Cache) -> Self {
        let fields = protocol.body(Vec::new()).into_iter().map(|(name, _)| name);
        let refusals = Refusals::new(config, fields.chain(config.extra.keys().cloned()));
        Self {
            invalid_attempts: if protocol.varies() { config.judge.invalid_attempts } else { 0 },
            protocol,
            tables: config.tables(),
            protocol_name: config.protocol.as_str(),
            refusals,
            is_known: !cache.is_empty(),
            cache: Mutex::new(cache),
            counters: Mutex::default(),
            warned_of_log_probs: AtomicBool::new(false),
        }
    }

    pub(crate) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn counters(&self) -> Counters {
        *self.lock_counters()
    }

    /// Whether the judge has given any answer, now or earlier.
    pub(crate) fn has_answered(&self) -> bool {
        let Counters { verdicts, invalid_verdicts, .. } = *self.lock_counters();
        self.is_known || verdicts + invalid_verdicts > 0
    }

    fn count_tokens(&self, reply: &JudgeReply) {
        let mut counters = self.lock_counters();
        counters.prompt_tokens += reply.prompt_tokens;
        counters.completion_tokens += reply.completion_tokens;
    }

    /// Warns once that verdicts are not as sure or unsure as they were asked to be.
    fn watch_log_probs(&self, certainty: Certainty) {
        if let Some(reason) = certainty.reason()
            && !self.warned_of_log_probs.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                "{reason}: such verdicts are read off the text and say nothing of how sure the judge is \
                 (`judge.log_probs = false` asks for no log-probabilities)"
            );
        }
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
        let reason = reply.ending.reason(self.tables);
        for InvalidVerdict(said) in reply.verdicts.iter_mut().filter_map(|one| one.as_mut().err()) {
            *said = match &reason {
                Some(reason) => format!("{} ({reason})", clean(said)),
                None => clean(said),
            };
        }
        self.watch_log_probs(reply.certainty);
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

    fn set_aside(
        &self,
        _questions: &Questions,
        refusal: &Refusal,
        is_alone: bool,
    ) -> Option<JudgeReply> {
        let answers = self.has_answered();
        let of_a_question = self.refusals.is_of_a_question(refusal);
        let mut counters = self.lock_counters();
        let believed = of_a_question.unwrap_or(answers || !is_alone)
            && (answers || counters.refused < UNANSWERED_REFUSALS);
        if !believed {
            return None;
        }
        counters.refused += 1;
        let said: String = refusal.details.chars().take(EXCERPT).collect();
        let refusal = Some(format!("{} {said}", refusal.status).trim_end().to_owned());
        Some(JudgeReply { refusal, ..JudgeReply::default() })
    }

    fn refusal_hint(&self, status: u16, message: &str) -> Option<String> {
        self.refusals.hint(status, message)
    }

    fn unreadable_hint(&self, message: &str) -> Option<String> {
        if message.contains(NOT_A_NUMBER) {
            return Some("see to the model behind the service: its scores are no numbers".into());
        }
        (!self.has_answered()).then(|| {
            format!(
                "check `endpoints` and `protocol`: this is not how a service replies that speaks {}",
                self.protocol_name
            )
        })
    }

    fn resume_hint(&self) -> String {
        "see what is wrong with the service, then give the same command again (`sppo run` with \
         `--resume`): no judgment that was made so far is asked for again"
            .into()
    }
}

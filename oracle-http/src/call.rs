//! One call of [`Oracle::preferences`](sppo_plugin::Oracle::preferences): asks what is not known,
//! waits, and makes verdicts of the replies.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, json};
use sppo_http_transport::{Counters, Dispatcher, Reply, Request, Snapshot};
use sppo_plugin::{Comparison, PluginError, Progress, Verdict};

use crate::cache::{Key, KeyMaker};
use crate::config::HttpConfig;
use crate::exchange::{JudgeExchange, Questions};
use crate::protocol::{Common, Protocol, questions_per_request};
use crate::question::{Ending, InvalidVerdict, Part, Question, QuestionVerdict};
use crate::round::{New, Place, Round};
use crate::signal::Signal;

/// Interval at which progress is reported and the caller asked whether to stop.
const TICK: Duration = Duration::from_millis(50);
/// Time that requests under way get, when a run stops, to come back and be remembered.
const GRACE: Duration = Duration::from_secs(5);
/// Characters of a prompt that are shown.
const EXCERPT: usize = 60;
/// Interval at which verdicts are made to survive a loss of power.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// The parts that exist from the first judgment on.
pub(crate) struct Service {
    pub(crate) exchange: Arc<JudgeExchange>,
    pub(crate) dispatcher: Dispatcher<JudgeExchange>,
}

/// Totals over all calls, besides those that the exchange and the dispatcher count.
#[derive(Default)]
pub(crate) struct Totals {
    questions: u64,
    invalid: u64,
    cache_hits: u64,
    undecided_pairs: u64,
    /// Comparisons of all calls, those of the present one included.
    comparisons: u64,
    /// Those of them with questions that the service refuses.
    refused: u64,
    signal: Signal,
}

/// The state of a call.
pub(crate) struct Call<'a> {
    config: &'a HttpConfig,
    protocol: &'a dyn Protocol,
    keys: &'a KeyMaker,
    service: &'a Service,
    totals: &'a mut Totals,
    progress: &'a dyn Progress,
    round: Round,
    comparisons: u64,
    /// Comparisons, by their indices, with questions that the service refuses.
    with_refusals: HashSet<usize>,
    last_refusal: Option<String>,
    started: Instant,
    /// The counters when the call began.
    before: Option<Counters>,
}

/// Questions that will share a request.
#[derive(Default)]
struct Batch {
    parts: Vec<Part>,
    questions: Vec<(usize, Key)>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(
        config: &'a HttpConfig,
        protocol: &'a dyn Protocol,
        keys: &'a KeyMaker,
        service: &'a Service,
        totals: &'a mut Totals,
        progress: &'a dyn Progress,
    ) -> Self {
        Self {
            config,
            protocol,
            keys,
            service,
            totals,
            progress,
            round: Round::default(),
            comparisons: 0,
            with_refusals: HashSet::new(),
            last_refusal: None,
            started: Instant::now(),
            before: None,
        }
    }

    /// One verdict per comparison.
    pub(crate) fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
    ) -> Result<Vec<Verdict>, PluginError> {
        self.comparisons = comparisons.len() as u64;
        self.totals.comparisons += self.comparisons;
        self.service.dispatcher.begin();
        let outcome = self.ask(comparisons).and_then(|()| self.collect(comparisons));
        let outcome = outcome.and_then(|()| self.require_an_answer());
        if outcome.is_err() {
            self.service.dispatcher.abandon(GRACE);
        }
        let synced = self.sync(Duration::ZERO);
        outcome.and(synced)?;
        let combination = self.protocol.combination();
        let verdicts = self.round.verdicts(&combination, self.config.judge.undecided);
        self.count_undecided();
        self.look_for_a_signal();
        verdicts
    }

    /// Puts every question that is neither known nor asked already into the queue.
    fn ask(&mut self, comparisons: &[Comparison<'_>]) -> Result<(), PluginError> {
        let compares = self.protocol.compares();
        let together = questions_per_request(self.config, self.protocol);
        let mut batch = Batch::default();
        for comparison in comparisons {
            if self.progress.is_cancelled() {
                return Err(PluginError::cancelled());
            }
            self.sync(SYNC_INTERVAL)?;
            let mut parts = Vec::new();
            let mut questions: Vec<(Question<'_>, Key)> = Vec::new();
            for question in Round::questions(comparison, self.protocol, self.config.orders) {
                let part = self.protocol.part(question)?;
                questions.push((question, self.keys.key(&part)));
                parts.push(part);
            }
            let mut known: Vec<Option<QuestionVerdict>> = {
                let cache = self.service.exchange.cache();
                questions.iter().map(|(_, key)| cache.get(key)).collect()
            };
            if self.protocol.common() == Common::Group {
                forget_parts_of_groups(&questions, &mut known);
            }
            let new = self.round.add(comparison, compares, &questions, known);
            self.totals.cache_hits += new.iter().filter(|new| new.is_none()).count() as u64;
            for ((part, (_, key)), new) in parts.into_iter().zip(questions).zip(new) {
                let Some(New(number)) = new else { continue };
                let other = batch.parts.first().is_some_and(|first| first.shared != part.shared);
                if other || batch.parts.len() >= together {
                    self.send(std::mem::take(&mut batch))?;
                }
                batch.parts.push(part);
                batch.questions.push((number, key));
            }
        }
        self.totals.questions += self.round.question_count();
        if batch.parts.is_empty() { Ok(()) } else { self.send(batch) }
    }

    fn send(&self, batch: Batch) -> Result<(), PluginError> {
        let mut body = Map::new();
        if let Some(model) = &self.config.model {
            body.insert("model".into(), json!(model));
        }
        body.extend(self.protocol.body(batch.parts));
        body.extend(self.config.extra.clone());
        for field in &self.config.leave_out {
            body.shift_remove(field);
        }
        let body =
            serde_json::to_vec(&body).map_err(|error| PluginError::failed(error.to_string()))?;
        self.service.dispatcher.push(Request { body: body.into(), job: batch.questions });
        Ok(())
    }

    /// Waits for all answers.
    fn collect(&mut self, comparisons: &[Comparison<'_>]) -> Result<(), PluginError> {
        loop {
            let mut snapshot = self.service.dispatcher.wait(TICK);
            let mut asks_more = false;
            for Reply { job: questions, content } in std::mem::take(&mut snapshot.replies) {
                if let Some(said) = content.refusal {
                    asks_more |= self.refused(questions, said, comparisons)?;
                    continue;
                }
                for ((question, _), verdict) in questions.into_iter().zip(content.verdicts) {
                    self.settle(question, verdict, content.ending)?;
                }
            }
            self.report(&snapshot);
            self.sync(SYNC_INTERVAL)?;
            if let Some(error) = snapshot.stopped {
                return Err(error);
            }
            if snapshot.finished && !asks_more {
                return Ok(());
            }
            if self.progress.is_cancelled() {
                return Err(PluginError::cancelled());
            }
        }
    }

    /// Sets a refused question aside. Of several in one request each is asked by itself, unless they make sense
    /// only together; returns whether that is so.
    fn refused(
        &mut self,
        questions: Questions,
        said: String,
        comparisons: &[Comparison<'_>],
    ) -> Result<bool, PluginError> {
        let alone = questions.len() == 1 || self.protocol.common() == Common::Group;
        for (number, key) in questions {
            let Place { comparison: index, first, second, variant } = self.round.place(number);
            let comparison = &comparisons[index];
            if alone {
                self.set_aside(number, &said, comparison)?;
                continue;
            }
            let part = self.protocol.part(Question { comparison, first, second, variant })?;
            self.send(Batch { parts: vec![part], questions: vec![(number, key)] })?;
        }
        Ok(!alone)
    }

    /// Takes note of a refused question, and stops when there are too many prompts with such.
    fn set_aside(
        &mut self,
        number: usize,
        said: &str,
        comparison: &Comparison<'_>,
    ) -> Result<(), PluginError> {
        let place = self.round.place(number);
        self.round.refuse(number, said.to_owned());
        if !self.with_refusals.insert(place.comparison) {
            return Ok(());
        }
        self.totals.refused += 1;
        let refusal = format!("{}: {said}", self.name(place, comparison));
        let allowed = self.config.max_refused_share * self.totals.comparisons as f64;
        if self.totals.refused as f64 > allowed.ceil() {
            return Err(self.too_many_refusals(&refusal));
        }
        tracing::warn!("the service refuses a question, whose answers count as equal: {refusal}");
        self.last_refusal = Some(refusal);
        Ok(())
    }

    /// Refuses to go on with a service that has refused all that it was ever asked.
    fn require_an_answer(&self) -> Result<(), PluginError> {
        match &self.last_refusal {
            Some(refusal) if !self.service.exchange.has_answered() => {
                Err(self.too_many_refusals(refusal))
            }
            _ => Ok(()),
        }
    }

    fn too_many_refusals(&self, last: &str) -> PluginError {
        let Totals { refused, comparisons, .. } = *self.totals;
        let share = self.config.max_refused_share;
        PluginError::failed(format!(
            "the service refuses questions about {refused} of {comparisons} prompts (max_refused_share is \
             {share}); the last one is about {last}"
        ))
        .with_hint(format!(
            "shorten such prompts and answers or leave them out, take a judge that answers them (with a longer \
             context), lower `{}.max_tokens`, or raise `oracle.http.max_refused_share`",
            self.config.tables().replies
        ))
    }

    /// The answers and the prompt of a question, in words. Prompts are counted as they were judged, from 1.
    fn name(&self, place: Place, comparison: &Comparison<'_>) -> String {
        let before = self.totals.comparisons - self.comparisons;
        let number = before + place.comparison as u64 + 1;
        let answers = match place.second {
            Some(second) => format!("answers {} and {}", place.first + 1, second + 1),
            None => format!("answer {}", place.first + 1),
        };
        let last = comparison.prompt.iter().rev().find(|message| message.role == "user");
        let text = last.map_or("", |message| &*message.content);
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut excerpt: String = words.join(" ");
        if let Some((cut, _)) = excerpt.char_indices().nth(EXCERPT) {
            excerpt.replace_range(cut.., "...");
        }
        // Without a policy it is a file that is judged.
        match comparison.rendered_prompt {
            None => format!("{answers} to prompt {number} (line {number}), `{excerpt}`"),
            Some(_) => format!("{answers} to the prompt `{excerpt}`"),
        }
    }

    /// Warns of a service that tells nothing apart.
    fn look_for_a_signal(&mut self) {
        let signal = &mut self.totals.signal;
        // What a response meets is no comparison, and says nothing by its middle.
        let tells = |verdict: &QuestionVerdict| {
            self.protocol.compares() || matches!(verdict, QuestionVerdict::Score(_))
        };
        self.round.valid_verdicts().filter(tells).for_each(|verdict| signal.add(verdict));
        if let Some(sign) = signal.news() {
            tracing::warn!("{}", signal.warning(sign, self.config.protocol));
        }
    }

    fn settle(
        &mut self,
        question: usize,
        verdict: Result<QuestionVerdict, InvalidVerdict>,
        ending: Ending,
    ) -> Result<(), PluginError> {
        if let Err(InvalidVerdict(said)) = &verdict {
            self.totals.invalid += 1;
            self.check_share_of_invalid(said, ending)?;
            self.round.remedy = ending.remedy(self.config.tables());
        }
        self.round.settle(question, verdict);
        Ok(())
    }

    fn check_share_of_invalid(&self, said: &str, ending: Ending) -> Result<(), PluginError> {
        let Totals { questions, invalid, .. } = *self.totals;
        let share = self.config.judge.max_invalid_share;
        if invalid as f64 <= (share * questions as f64).ceil() {
            return Ok(());
        }
        Err(PluginError::failed(format!(
            "{invalid} of {questions} verdicts are invalid, more than judge.max_invalid_share allows; \
             the last one: {said}"
        ))
        .with_hint(ending.remedy(self.config.tables())))
    }

    fn report(&mut self, snapshot: &Snapshot<JudgeExchange>) {
        self.progress.progress(self.round.completed(), self.comparisons);
        let counters = snapshot.counters;
        let judged = self.service.exchange.counters();
        let before = *self.before.get_or_insert(counters);
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        self.progress.metrics(&[
            ("requests", counters.requests as f64),
            ("requests_per_second", rate(counters.requests, before.requests)),
            ("in_flight", snapshot.in_flight as f64),
            ("retries", counters.retries as f64),
            ("retries_per_second", rate(counters.retries, before.retries)),
            ("judgments", judged.verdicts as f64),
            ("cache_hits", self.totals.cache_hits as f64),
            ("invalid_verdicts", judged.invalid_verdicts as f64),
            ("undecided_pairs", self.totals.undecided_pairs as f64),
            ("refused_prompts", self.totals.refused as f64),
            ("prompt_tokens", judged.prompt_tokens as f64),
            ("completion_tokens", judged.completion_tokens as f64),
        ]);
    }

    fn count_undecided(&mut self) {
        let ties = self.round.undecided_pairs;
        if ties > 0 {
            self.totals.undecided_pairs += ties;
            self.progress.metrics(&[("undecided_pairs", self.totals.undecided_pairs as f64)]);
            tracing::warn!("{ties} pairs count as ties: the judge gave no valid verdict on them");
        }
    }

    /// Makes verdicts survive a loss of power, if the last time is at least `interval` ago.
    fn sync(&self, interval: Duration) -> Result<(), PluginError> {
        let exchange = &self.service.exchange;
        // The cache is free for others in the meantime.
        let Some(unsynced) = exchange.cache().take_unsynced(interval) else { return Ok(()) };
        unsynced.sync().inspect_err(|_| exchange.cache().still_unsynced())
    }
}

/// Forgets what is known of groups that are not known as a whole, as after a crash while they were written: each is
/// asked about together.
fn forget_parts_of_groups(
    questions: &[(Question<'_>, Key)],
    known: &mut [Option<QuestionVerdict>],
) {
    let is_unknown =
        |(_, known): &(&(Question<'_>, Key), &Option<QuestionVerdict>)| known.is_none();
    let unknown: HashSet<usize> = questions
        .iter()
        .zip(known.iter())
        .filter(is_unknown)
        .map(|((question, _), _)| question.variant)
        .collect();
    for ((question, _), known) in questions.iter().zip(known) {
        if unknown.contains(&question.variant) {
            *known = None;
        }
    }
}

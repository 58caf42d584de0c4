//! Shared parts of oracles whose judge is a model on a backend: finding and loading it, scoring sequences
//! in batches, and the text of a conversation.

use std::borrow::Cow;
use std::cell::RefCell;
use std::time::Instant;

use sppo_plugin::{Comparison, Message, ModelSpec, PluginError, Progress, Scorer, Services};

use crate::checkpoint::scorer_identity;
use crate::checkpoint::source::{self, ModelOrigin, ModelSourceOptions, ResolvedModel};
use crate::error::Result;
use crate::hub::TransferProgress;

type PluginResult<T> = std::result::Result<T, PluginError>;

/// Files below this size come quickly enough to say nothing about them.
const LARGE_DOWNLOAD: u64 = 64 << 20;

/// The model that judges, and the backend that it computes on.
#[derive(Clone, Copy, Debug)]
pub struct JudgeSettings<'a> {
    /// A directory, or a model on the Hugging Face hub.
    pub model: &'a str,
    /// A branch, tag or commit on the hub.
    pub revision: Option<&'a str>,
    /// The backend to compute on, if it is not the run's.
    pub backend: Option<&'a str>,
    /// Tokens that are computed together, at most, unless one sequence has more.
    pub batch_tokens: usize,
}

impl JudgeSettings<'_> {
    /// Refuses settings with which nothing can be judged; `example` is a model that could be named.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self, example: &str) -> PluginResult<()> {
        if self.batch_tokens == 0 {
            return Err(PluginError::configuration(
                "batch_tokens: nothing can be computed at once",
            )
            .with_hint("set it to 1 or more, for instance 2048"));
        }
        if self.model.is_empty() {
            return Err(PluginError::configuration("model: it is not said which model judges")
                .with_hint(format!("give a directory or a hub id, for instance {example}")));
        }
        Ok(())
    }

    /// Finds the model, and fetches it where that is needed and allowed.
    ///
    /// # Errors
    /// As [`source::resolve`].
    pub fn find(&self, progress: &dyn Progress) -> Result<ResolvedModel> {
        let told = RefCell::new(String::new());
        let report = |TransferProgress { file, done, total }: TransferProgress| {
            let Some(total) = total.filter(|&total| total >= LARGE_DOWNLOAD) else { return };
            progress.progress(done, total);
            if *told.borrow() != file {
                tracing::warn!(
                    "fetching {file} ({} MiB) of {}; it is kept for next time",
                    total >> 20,
                    self.model
                );
                *told.borrow_mut() = file;
            }
        };
        let options = ModelSourceOptions::default();
        source::resolve(self.model, self.revision, &options, &report)
    }

    /// Has the program load a scorer on the backend of these settings.
    ///
    /// # Errors
    /// When the backend cannot load it.
    pub fn scorer(
        &self,
        spec: &ModelSpec,
        services: &dyn Services,
    ) -> PluginResult<Box<dyn Scorer>> {
        match self.backend {
            Some(backend) => services.scorer_on(backend, spec),
            None => services.scorer(spec),
        }
    }
}

/// Names in metrics of the numbers of sequences, of sequences per second and of tokens.
pub type MetricNames = [&'static str; 3];

/// A model on a backend that scores sequences for an oracle.
pub struct ModelJudge {
    scorer: Box<dyn Scorer>,
    /// The name on the hub, if the model comes from there, and the hash of what was loaded.
    identity: String,
    batch_tokens: usize,
    shares_beginnings: bool,
    metrics: MetricNames,
    totals: Totals,
}

/// Totals since the judge was loaded.
#[derive(Default)]
struct Totals {
    sequences: u64,
    tokens: u64,
    seconds: f64,
}

impl ModelJudge {
    /// Has the program load a model that was found. `text_files` are the files besides configuration and
    /// weights that its judgments depend on.
    ///
    /// # Errors
    /// When a file cannot be read, or the backend cannot load the model.
    pub fn load<'a>(
        settings: &JudgeSettings<'_>,
        found: ResolvedModel,
        text_files: impl Iterator<Item = &'a str>,
        metrics: MetricNames,
        services: &dyn Services,
    ) -> PluginResult<Self> {
        let sha256 = scorer_identity(&found.path, text_files)?.sha256;
        let identity = identity(&found, &sha256);
        let scorer = settings.scorer(&ModelSpec::new(found.path), services)?;
        Ok(Self::new(scorer, identity, settings.batch_tokens, metrics))
    }

    /// A scorer that is there, with the judge's identity for the record.
    #[must_use]
    pub fn new(
        scorer: Box<dyn Scorer>,
        identity: String,
        batch_tokens: usize,
        metrics: MetricNames,
    ) -> Self {
        let (shares_beginnings, totals) = (false, Totals::default());
        Self { scorer, identity, batch_tokens, shares_beginnings, metrics, totals }
    }

    /// The judge with a scorer that computes the beginning of neighbouring sequences once, so that only the
    /// rest counts as tokens of a batch.
    #[must_use]
    pub fn sharing_beginnings(mut self) -> Self {
        self.shares_beginnings = true;
        self
    }

    /// Numbers per sequence.
    #[must_use]
    pub fn width(&self) -> usize {
        self.scorer.width()
    }

    /// Scores the sequences that `ask` makes of each comparison. Returns for each comparison
    /// [`width`](Self::width) numbers per sequence, in order.
    ///
    /// # Errors
    /// When `ask` or the backend fails, or the user asks to stop.
    pub fn scores(
        &mut self,
        comparisons: &[Comparison<'_>],
        progress: &dyn Progress,
        ask: &mut dyn FnMut(&Comparison<'_>) -> PluginResult<Vec<Vec<u32>>>,
    ) -> PluginResult<Vec<Vec<f32>>> {
        let mut round = Round {
            judge: self,
            progress,
            batches: Vec::new(),
            sources: Vec::new(),
            batched_tokens: 0,
            full_tokens: 0,
            rows: Vec::with_capacity(comparisons.len()),
            total: comparisons.len(),
        };
        for comparison in comparisons {
            round.add(ask(comparison)?)?;
        }
        round.flush()?;
        Ok(round.rows.into_iter().map(|row| row.scores).collect())
    }
}

/// A judge and the layout of its sequences, which are there once their oracle is prepared.
pub struct PreparedJudge<L>(Option<(L, ModelJudge)>);

impl<L> Default for PreparedJudge<L> {
    fn default() -> Self {
        Self(None)
    }
}

impl<L> PreparedJudge<L> {
    /// Loads the judge with `load`, unless it is there.
    ///
    /// # Errors
    /// When `load` fails.
    pub fn prepare(
        &mut self,
        load: impl FnOnce() -> PluginResult<(L, ModelJudge)>,
    ) -> PluginResult<()> {
        if self.0.is_none() {
            self.0 = Some(load()?);
        }
        Ok(())
    }

    /// The layout and the judge.
    ///
    /// # Errors
    /// When they were not prepared.
    pub fn get(&mut self) -> PluginResult<(&mut L, &mut ModelJudge)> {
        let (layout, judge) = self
            .0
            .as_mut()
            .ok_or_else(|| PluginError::failed("the judge's model is not loaded"))?;
        Ok((layout, judge))
    }

    /// The identity of the judge, if it is there.
    #[must_use]
    pub fn identity(&self) -> Option<String> {
        self.0.as_ref().map(|(_, judge)| judge.identity.clone())
    }
}

/// A judge's identity for the record: the name on the hub, if it comes from there, and the hash of its files.
#[must_use]
pub fn identity(found: &ResolvedModel, sha256: &str) -> String {
    let name = &found.identity;
    match (name.source, &name.revision) {
        (ModelOrigin::Local, _) => format!("sha256 {sha256}"),
        (_, Some(revision)) => format!("{}@{revision}, sha256 {sha256}", name.name),
        (_, None) => format!("{}, sha256 {sha256}", name.name),
    }
}

/// One call of an oracle. Batches are filled without regard to the comparison that a sequence is from.
struct Round<'a> {
    judge: &'a mut ModelJudge,
    progress: &'a dyn Progress,
    /// Sequences that wait for their scores, in batches: as many as are scored at the same time.
    batches: Vec<Vec<Vec<u32>>>,
    /// The comparison of each of them.
    sources: Vec<usize>,
    /// Tokens of the last batch, and of those before it.
    batched_tokens: usize,
    full_tokens: usize,
    rows: Vec<Row>,
    total: usize,
}

/// The numbers of a comparison.
struct Row {
    scores: Vec<f32>,
    /// Sequences of the comparison.
    count: usize,
}

impl Round<'_> {
    fn add(&mut self, sequences: Vec<Vec<u32>>) -> PluginResult<()> {
        let comparison = self.rows.len();
        self.rows.push(Row { scores: Vec::new(), count: sequences.len() });
        for sequence in sequences {
            let mut tokens = self.new_tokens(&sequence);
            if self.batched_tokens + tokens > self.judge.batch_tokens {
                self.close_batch()?;
                tokens = self.new_tokens(&sequence);
            }
            self.batched_tokens += tokens;
            match self.batches.last_mut() {
                Some(batch) => batch.push(sequence),
                None => self.batches.push(vec![sequence]),
            }
            self.sources.push(comparison);
        }
        Ok(())
    }

    /// Tokens of a sequence that the last batch does not compute anyhow.
    fn new_tokens(&self, sequence: &[u32]) -> usize {
        let before = self.batches.last().and_then(|batch| batch.last());
        let Some(before) = before.filter(|_| self.judge.shares_beginnings) else {
            return sequence.len();
        };
        let is_same = |(one, other): &(&u32, &u32)| one == other;
        sequence.len() - sequence.iter().zip(before).take_while(is_same).count()
    }

    /// Begins another batch, and scores those that are full if they are enough.
    fn close_batch(&mut self) -> PluginResult<()> {
        if self.batches.len() >= self.judge.scorer.replicas() {
            return self.flush();
        }
        if self.batches.last().is_some_and(|batch| !batch.is_empty()) {
            self.batches.push(Vec::new());
            self.full_tokens += std::mem::take(&mut self.batched_tokens);
        }
        Ok(())
    }

    /// Scores the batches.
    fn flush(&mut self) -> PluginResult<()> {
        if self.progress.is_cancelled() {
            return Err(PluginError::cancelled());
        }
        if self.sources.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let scores = self.judge.scorer.score_each(&self.batches)?.concat();
        let width = self.judge.width();
        if width == 0 || scores.len() != width * self.sources.len() {
            return Err(PluginError::failed(format!(
                "the backend gave {} numbers for {} sequences",
                scores.len(),
                self.sources.len()
            )));
        }
        let totals = &mut self.judge.totals;
        totals.sequences += self.sources.len() as u64;
        for (comparison, numbers) in self.sources.drain(..).zip(scores.chunks(width)) {
            self.rows[comparison].scores.extend_from_slice(numbers);
        }
        let totals = &mut self.judge.totals;
        totals.tokens += (self.full_tokens + self.batched_tokens) as u64;
        totals.seconds += started.elapsed().as_secs_f64();
        self.batches.clear();
        (self.full_tokens, self.batched_tokens) = (0, 0);
        self.report();
        Ok(())
    }

    fn report(&self) {
        let width = self.judge.width();
        let is_complete = |row: &&Row| row.scores.len() == width * row.count;
        let completed = self.rows.iter().filter(is_complete).count();
        self.progress.progress(completed as u64, self.total as u64);
        let Totals { sequences, tokens, seconds } = self.judge.totals;
        let [asked, per_second, counted] = self.judge.metrics;
        self.progress.metrics(&[
            (asked, sequences as f64),
            (per_second, sequences as f64 / seconds.max(1e-9)),
            (counted, tokens as f64),
        ]);
    }
}

/// A prompt as plain text: what the user wrote, or lines `USER: ...` and `ASSISTANT: ...` where there
/// was more than one turn.
#[must_use]
pub fn conversation_text<'a>(messages: &'a [Message<'_>]) -> Cow<'a, str> {
    if let [Message { content, .. }] = messages {
        return Cow::Borrowed(content);
    }
    let line = |message: &Message| format!("{}: {}", message.role.to_uppercase(), message.content);
    messages.iter().map(line).collect::<Vec<_>>().join("\n").into()
}

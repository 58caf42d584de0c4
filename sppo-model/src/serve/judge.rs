//! What oracles share whose judge is a model on a backend: finding it, having sequences scored in
//! batches, and the text of a conversation.

use std::borrow::Cow;
use std::cell::RefCell;
use std::time::Instant;

use sppo_plugin::{Comparison, Message, ModelSpec, PluginError, Progress, Scorer, Services};

use crate::checkpoint::scorer_identity;
use crate::checkpoint::source::{
    self, DownloadProgress, ModelOrigin, ModelSourceOptions, ResolvedModel,
};
use crate::error::Result;

type PluginResult<T> = std::result::Result<T, PluginError>;

/// Files below this size come quickly enough to say nothing about them.
const LARGE_DOWNLOAD: u64 = 64 << 20;

/// Which model judges, and where it computes.
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
        let report = |DownloadProgress { file, received, total }: DownloadProgress| {
            let Some(total) = total.filter(|&total| total >= LARGE_DOWNLOAD) else { return };
            progress.progress(received, total);
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
}

/// A sequence to have scored, and what its score is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The tokens.
    pub sequence: Vec<u32>,
    /// Where the score goes.
    pub entries: Entries,
}

/// The entries of a comparison's table that one score fills.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Those that are the score.
    pub same: Vec<usize>,
    /// Those that are its opposite.
    pub opposite: Vec<usize>,
}

impl Entries {
    /// Writes the score to its entries.
    pub fn fill(&self, table: &mut [f32], score: f32) {
        self.same.iter().for_each(|&entry| table[entry] = score);
        self.opposite.iter().for_each(|&entry| table[entry] = -score);
    }
}

/// A table with 0 wherever no question's score goes, and the questions that fill it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Questions {
    /// Entries of the table.
    pub table_length: usize,
    /// What to ask.
    pub asked: Vec<Question>,
}

/// What the numbers of questions, of questions per second and of tokens are called in metrics.
pub type MetricNames = [&'static str; 3];

/// A model on a backend that scores sequences for an oracle.
pub struct ModelJudge {
    scorer: Box<dyn Scorer>,
    identity: String,
    batch_tokens: usize,
    metrics: MetricNames,
    totals: Totals,
}

/// Counted since the judge was loaded.
#[derive(Default)]
struct Totals {
    questions: u64,
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
        let identity = identity(&found, text_files)?;
        let spec = ModelSpec { path: found.path };
        let scorer = match settings.backend {
            Some(backend) => services.scorer_on(backend, &spec)?,
            None => services.scorer(&spec)?,
        };
        let batch_tokens = settings.batch_tokens;
        Ok(Self { scorer, identity, batch_tokens, metrics, totals: Totals::default() })
    }

    /// The name on the hub, if the model comes from there, and the hash of what was loaded.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Has everything scored that `ask` wants to know about the comparisons, and returns their tables.
    ///
    /// # Errors
    /// When `ask` or the backend fails, or the user asks to stop.
    pub fn tables(
        &mut self,
        comparisons: &[Comparison<'_>],
        progress: &dyn Progress,
        ask: &mut dyn FnMut(&Comparison<'_>) -> PluginResult<Questions>,
    ) -> PluginResult<Vec<Vec<f32>>> {
        let mut round = Round {
            judge: self,
            progress,
            batch: Vec::new(),
            batched_tokens: 0,
            tables: Vec::with_capacity(comparisons.len()),
            total: comparisons.len(),
        };
        for comparison in comparisons {
            round.add(ask(comparison)?)?;
        }
        round.flush()?;
        Ok(round.tables.into_iter().map(|table| table.scores).collect())
    }
}

fn identity<'a>(
    found: &ResolvedModel,
    text_files: impl Iterator<Item = &'a str>,
) -> Result<String> {
    let sha256 = scorer_identity(&found.path, text_files)?.sha256;
    let name = &found.identity;
    Ok(match (name.source, &name.revision) {
        (ModelOrigin::Local, _) => format!("sha256 {sha256}"),
        (_, Some(revision)) => format!("{}@{revision}, sha256 {sha256}", name.name),
        (_, None) => format!("{}, sha256 {sha256}", name.name),
    })
}

/// One call of an oracle: questions are asked in batches, whatever comparison they belong to.
struct Round<'a> {
    judge: &'a mut ModelJudge,
    progress: &'a dyn Progress,
    batch: Vec<Asked>,
    batched_tokens: usize,
    tables: Vec<Table>,
    total: usize,
}

/// A question that waits for its score.
struct Asked {
    comparison: usize,
    question: Question,
}

/// The scores of a comparison.
struct Table {
    scores: Vec<f32>,
    /// Questions without a score so far.
    open: usize,
}

impl Round<'_> {
    fn add(&mut self, Questions { table_length, asked }: Questions) -> PluginResult<()> {
        let comparison = self.tables.len();
        self.tables.push(Table { scores: vec![0.0; table_length], open: asked.len() });
        for question in asked {
            if self.batched_tokens + question.sequence.len() > self.judge.batch_tokens {
                self.flush()?;
            }
            self.batched_tokens += question.sequence.len();
            self.batch.push(Asked { comparison, question });
        }
        Ok(())
    }

    /// Has the batch scored.
    fn flush(&mut self) -> PluginResult<()> {
        if self.progress.is_cancelled() {
            return Err(PluginError::cancelled());
        }
        if self.batch.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let take = |asked: &mut Asked| std::mem::take(&mut asked.question.sequence);
        let sequences: Vec<Vec<u32>> = self.batch.iter_mut().map(take).collect();
        let scores = self.judge.scorer.score(&sequences)?;
        if scores.len() != sequences.len() {
            return Err(PluginError::failed(format!(
                "the backend gave {} scores for {} sequences",
                scores.len(),
                sequences.len()
            )));
        }
        for (asked, score) in self.batch.drain(..).zip(scores) {
            let table = &mut self.tables[asked.comparison];
            asked.question.entries.fill(&mut table.scores, score);
            table.open -= 1;
        }
        let totals = &mut self.judge.totals;
        totals.questions += sequences.len() as u64;
        totals.tokens += self.batched_tokens as u64;
        totals.seconds += started.elapsed().as_secs_f64();
        self.batched_tokens = 0;
        self.report();
        Ok(())
    }

    fn report(&self) {
        let completed = self.tables.iter().filter(|table| table.open == 0).count();
        self.progress.progress(completed as u64, self.total as u64);
        let Totals { questions, tokens, seconds } = self.judge.totals;
        let [asked, per_second, counted] = self.judge.metrics;
        self.progress.metrics(&[
            (asked, questions as f64),
            (per_second, questions as f64 / seconds.max(1e-9)),
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

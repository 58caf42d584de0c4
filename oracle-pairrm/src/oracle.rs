//! The oracle: it finds the ranker, shows it all pairs, and hands back their logits.

use std::borrow::Cow;
use std::time::Instant;

use sppo_core::plugin::{
    Comparison, Host, Message, ModelSpec, Oracle, OraclePlugin, PluginError, Scorer, Verdict,
};
use sppo_model::checkpoint::scorer_identity;
use sppo_model::model_source::{
    self, DownloadProgress, ModelOrigin, ModelSourceOptions, ResolvedModel,
};

use crate::config::{PairrmConfig, PromptView};
use crate::layout::Layout;
use crate::pairs::{Pair, pairs};

/// Files below this size come quickly enough to say nothing about them.
const LARGE_DOWNLOAD: u64 = 64 << 20;

/// Judges answers with a neural ranker.
pub struct PairrmOracle {
    config: PairrmConfig,
    ranker: Option<Ranker>,
    has_told_view: bool,
    totals: Totals,
}

/// The model, once it is loaded.
struct Ranker {
    layout: Layout,
    scorer: Box<dyn Scorer>,
    identity: String,
}

/// Counted since the oracle was made.
#[derive(Default)]
struct Totals {
    pairs: u64,
    tokens: u64,
    seconds: f64,
}

impl OraclePlugin for PairrmOracle {
    type Config = PairrmConfig;
    const NAME: &'static str = "pairrm";
    const SUMMARY: &'static str =
        "PairRM, a neural ranker that compares two answers, on the run's backend";

    fn create(config: PairrmConfig) -> Result<Self, PluginError> {
        if config.batch_tokens == 0 {
            return Err(PluginError::configuration(
                "batch_tokens: nothing can be computed at once",
            )
            .with_hint("set it to 1 or more, for instance 2048"));
        }
        if config.model.is_empty() {
            return Err(PluginError::configuration("model: it is not said which model judges")
                .with_hint("give a directory or a hub id, for instance llm-blender/PairRM"));
        }
        Ok(Self { config, ranker: None, has_told_view: false, totals: Totals::default() })
    }
}

impl Oracle for PairrmOracle {
    fn prepare(&mut self, host: &dyn Host) -> Result<(), PluginError> {
        if self.ranker.is_none() {
            self.ranker = Some(Ranker::load(&self.config, host)?);
        }
        Ok(())
    }

    fn preferences(
        &mut self,
        comparisons: &[Comparison],
        host: &dyn Host,
    ) -> Result<Vec<Verdict>, PluginError> {
        self.prepare(host)?;
        let Some(ranker) = &mut self.ranker else {
            return Err(PluginError::failed("the ranker is not loaded"));
        };
        let mut round = Round {
            ranker,
            totals: &mut self.totals,
            host,
            batch: Vec::new(),
            batched_tokens: 0,
            tables: Vec::with_capacity(comparisons.len()),
            total: comparisons.len(),
        };
        for comparison in comparisons {
            if self.config.prompt_view == PromptView::Templated
                && comparison.rendered_prompt.is_none()
                && !std::mem::replace(&mut self.has_told_view, true)
            {
                tracing::info!(
                    "there is no policy whose chat template renders these prompts, so \
                                the ranker sees them as they are"
                );
            }
            round.add(comparison, &self.config)?;
        }
        round.flush()?;
        Ok(round.tables.into_iter().map(|table| Verdict::Logits(table.logits)).collect())
    }

    fn identity(&self) -> Option<String> {
        self.ranker.as_ref().map(|ranker| ranker.identity.clone())
    }
}

sppo_core::export_oracle!(PairrmOracle);

impl Ranker {
    fn load(config: &PairrmConfig, host: &dyn Host) -> Result<Self, PluginError> {
        let found = find(config, host)?;
        let layout = Layout::read(&found.path)?;
        let identity = identity(&found)?;
        let spec = ModelSpec { path: found.path };
        let scorer = match &config.backend {
            Some(backend) => host.scorer_on(backend, &spec)?,
            None => host.scorer(&spec)?,
        };
        Ok(Self { layout, scorer, identity })
    }
}

/// Finds the model, and fetches it where that is needed and allowed.
fn find(config: &PairrmConfig, host: &dyn Host) -> Result<ResolvedModel, PluginError> {
    let told = std::cell::RefCell::new(String::new());
    let progress = |DownloadProgress { file, received, total }: DownloadProgress| {
        let Some(total) = total.filter(|&total| total >= LARGE_DOWNLOAD) else { return };
        host.progress(received, total);
        if *told.borrow() != file {
            tracing::warn!(
                "fetching {file} ({} MiB) of {}; it is kept for next time",
                total >> 20,
                config.model
            );
            *told.borrow_mut() = file;
        }
    };
    let options = ModelSourceOptions::default();
    Ok(model_source::resolve(&config.model, config.revision.as_deref(), &options, &progress)?)
}

/// The name on the hub, if it comes from there, and the hash of what was loaded.
fn identity(found: &ResolvedModel) -> Result<String, PluginError> {
    let sha256 = scorer_identity(&found.path)?.sha256;
    let name = &found.identity;
    Ok(match (name.source, &name.revision) {
        (ModelOrigin::Local, _) => format!("sha256 {sha256}"),
        (_, Some(revision)) => format!("{}@{revision}, sha256 {sha256}", name.name),
        (_, None) => format!("{}, sha256 {sha256}", name.name),
    })
}

/// One call of [`Oracle::preferences`]: pairs are shown in batches, whatever comparison they belong to.
struct Round<'a> {
    ranker: &'a mut Ranker,
    totals: &'a mut Totals,
    host: &'a dyn Host,
    batch: Vec<Shown>,
    batched_tokens: usize,
    tables: Vec<Table>,
    total: usize,
}

/// A pair that waits for its logit.
struct Shown {
    comparison: usize,
    pair: Pair,
    sequence: Vec<u32>,
}

/// The logits of a comparison.
struct Table {
    logits: Vec<f32>,
    /// Pairs without a logit so far.
    open: usize,
}

impl Round<'_> {
    fn add(&mut self, comparison: &Comparison, config: &PairrmConfig) -> Result<(), PluginError> {
        let texts = comparison.candidates.iter().map(|candidate| candidate.text.as_str());
        let contents =
            self.ranker.layout.contents(&prompt(comparison, config.prompt_view), texts)?;
        let pairs = pairs(&contents.candidates, config.orders);
        let size = comparison.candidates.len();
        let number = self.tables.len();
        self.tables.push(Table { logits: vec![0.0; size * size], open: pairs.len() });
        for pair in pairs {
            let sequence = self.ranker.layout.sequence(&contents, pair.first, pair.second);
            if self.batched_tokens + sequence.len() > config.batch_tokens {
                self.flush()?;
            }
            self.batched_tokens += sequence.len();
            self.batch.push(Shown { comparison: number, pair, sequence });
        }
        Ok(())
    }

    /// Has the batch scored.
    fn flush(&mut self) -> Result<(), PluginError> {
        if self.host.is_cancelled() {
            return Err(PluginError::cancelled());
        }
        if self.batch.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let mut sequences = Vec::with_capacity(self.batch.len());
        sequences.extend(self.batch.iter_mut().map(|shown| std::mem::take(&mut shown.sequence)));
        let logits = self.ranker.scorer.score(&sequences)?;
        if logits.len() != sequences.len() {
            return Err(PluginError::failed(format!(
                "the backend gave {} scores for {} pairs",
                logits.len(),
                sequences.len()
            )));
        }
        for (shown, logit) in self.batch.drain(..).zip(logits) {
            let table = &mut self.tables[shown.comparison];
            shown.pair.fill(&mut table.logits, logit);
            table.open -= 1;
        }
        self.totals.pairs += sequences.len() as u64;
        self.totals.tokens += self.batched_tokens as u64;
        self.totals.seconds += started.elapsed().as_secs_f64();
        self.batched_tokens = 0;
        self.report();
        Ok(())
    }

    fn report(&self) {
        let completed = self.tables.iter().filter(|table| table.open == 0).count();
        self.host.progress(completed as u64, self.total as u64);
        let Totals { pairs, tokens, seconds } = *self.totals;
        self.host.metrics(&[
            ("pairs", pairs as f64),
            ("pairs_per_second", pairs as f64 / seconds.max(1e-9)),
            ("ranker_tokens", tokens as f64),
        ]);
    }
}

/// The prompt as the ranker sees it.
fn prompt(comparison: &Comparison, view: PromptView) -> Cow<'_, str> {
    match (view, comparison.rendered_prompt.as_deref(), &comparison.prompt[..]) {
        (PromptView::Templated, Some(rendered), _) => rendered.into(),
        (_, _, [Message { content, .. }]) => content.into(),
        (_, _, conversation) => {
            let line =
                |message: &Message| format!("{}: {}", message.role.to_uppercase(), message.content);
            conversation.iter().map(line).collect::<Vec<_>>().join("\n").into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_shown_as_rendered_or_as_written() {
        let mut comparison = Comparison {
            prompt: vec![Message::user("Hi?")],
            rendered_prompt: Some("<s>[INST] Hi? [/INST]".into()),
            candidates: Vec::new(),
        };
        assert_eq!(prompt(&comparison, PromptView::Templated), "<s>[INST] Hi? [/INST]");
        assert_eq!(prompt(&comparison, PromptView::Raw), "Hi?");
        comparison.rendered_prompt = None;
        assert_eq!(prompt(&comparison, PromptView::Templated), "Hi?");
        comparison.prompt.extend([Message::assistant("Hi."), Message::user("So?")]);
        assert_eq!(prompt(&comparison, PromptView::Raw), "USER: Hi?\nASSISTANT: Hi.\nUSER: So?");
    }
}

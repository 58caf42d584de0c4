//! The oracle and its settings: it finds the ranker, shows it all pairs, and returns their logits.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::Deserialize;
use sppo_model::serve::ScorerKind;
use sppo_model::serve::judge::{
    JudgeSettings, MetricNames, ModelJudge, PreparedJudge, conversation_text,
};
use sppo_plugin::pairwise::Orders;
use sppo_plugin::{Comparison, Oracle, Plugin, PluginError, Progress, Services, Verdict};

use crate::pairs::Pairs;
use crate::sequence::SequenceBuilder;

const METRICS: MetricNames = ["pairs", "pairs_per_second", "ranker_tokens"];

/// The ranker that judges, its backend, and the form in which it sees prompts and pairs.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PairrmConfig {
    /// A directory, or a model on the Hugging Face hub, in the layout of `llm-blender/PairRM` or of
    /// `llm-blender/PairRM-hf`.
    #[schemars(extend("format" = "model"))]
    pub model: String,
    /// A branch, tag or commit of the model on the hub; its main branch when left out.
    pub revision: Option<String>,
    /// The backend that the ranker computes on, with its own settings; the run's when left out.
    pub backend: Option<String>,
    /// Orders in which each pair is shown: both, as in the released code, or one at half the cost.
    pub orders: Orders,
    /// The form in which the ranker sees prompts.
    pub prompt_view: PromptView,
    /// Tokens that are computed together, at most, unless one pair has more. It changes memory and
    /// speed, not the result.
    pub batch_tokens: usize,
}

impl Default for PairrmConfig {
    fn default() -> Self {
        Self {
            model: "llm-blender/PairRM".into(),
            revision: None,
            backend: None,
            orders: Orders::default(),
            prompt_view: PromptView::default(),
            batch_tokens: 2048,
        }
    }
}

/// The form in which the ranker sees prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PromptView {
    /// As the policy's chat template renders them, its control tokens as text, like the released code.
    /// Prompts of a file, for which no policy is loaded, are shown as with `raw`.
    #[default]
    Templated,
    /// As the user wrote them. A longer conversation is shown as lines `USER: ...` and
    /// `ASSISTANT: ...`.
    Raw,
}

/// Judges responses with a neural ranker.
pub struct PairrmOracle {
    config: PairrmConfig,
    ranker: PreparedJudge<SequenceBuilder>,
    has_told_view: bool,
}

impl Plugin for PairrmOracle {
    type Config = PairrmConfig;
    const NAME: &'static str = "pairrm";
    const SUMMARY: &'static str =
        "PairRM, a neural ranker that compares two answers, on the run's backend";

    fn create(config: PairrmConfig) -> Result<Self, PluginError> {
        settings(&config).check("llm-blender/PairRM")?;
        Ok(Self { config, ranker: PreparedJudge::default(), has_told_view: false })
    }
}

impl Oracle for PairrmOracle {
    fn prepare(
        &mut self,
        services: &dyn Services,
        progress: &dyn Progress,
    ) -> Result<(), PluginError> {
        self.ranker.prepare(|| load(&self.config, services, progress))
    }

    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        progress: &dyn Progress,
    ) -> Result<Vec<Verdict>, PluginError> {
        let Self { config, ranker, has_told_view } = self;
        let (builder, judge) = ranker.get()?;
        let is_raw = |comparison: &Comparison| comparison.rendered_prompt.is_none();
        if config.prompt_view == PromptView::Templated
            && comparisons.iter().any(is_raw)
            && !std::mem::replace(has_told_view, true)
        {
            tracing::info!(
                "there is no policy whose chat template renders these prompts, so the ranker sees \
                 them as they are"
            );
        }
        let mut asked: Vec<Pairs> = Vec::with_capacity(comparisons.len());
        let logits = judge.scores(comparisons, progress, &mut |comparison| {
            let texts = comparison.candidates.iter().map(|candidate| &*candidate.text);
            let contents = builder.contents(&prompt(comparison, config.prompt_view), texts)?;
            let pairs = Pairs::new(&contents.candidates, config.orders);
            let shown = pairs.shown().iter();
            let sequence = |&(first, second)| builder.sequence(&contents, first, second);
            let sequences = shown.map(sequence).collect();
            asked.push(pairs);
            Ok(sequences)
        })?;
        let tables = asked.iter().zip(&logits).map(|(pairs, logits)| pairs.table(logits));
        Ok(tables.map(Verdict::Logits).collect())
    }

    fn identity(&self) -> Option<String> {
        self.ranker.identity()
    }

    fn expected_sequences(&self, comparisons: u64, candidates: u64) -> Option<u64> {
        let both = comparisons * candidates * candidates.saturating_sub(1);
        Some(if self.config.orders == Orders::One { both / 2 } else { both })
    }
}

sppo_plugin::export_oracle!(PairrmOracle);

fn settings(config: &PairrmConfig) -> JudgeSettings<'_> {
    JudgeSettings {
        model: &config.model,
        revision: config.revision.as_deref(),
        backend: config.backend.as_deref(),
        batch_tokens: config.batch_tokens,
    }
}

fn load(
    config: &PairrmConfig,
    services: &dyn Services,
    progress: &dyn Progress,
) -> Result<(SequenceBuilder, ModelJudge), PluginError> {
    let settings = settings(config);
    let found = settings.find(progress)?;
    if ScorerKind::read(&found.path)? != ScorerKind::PairRanker {
        let message = format!("{}: scores one answer, and compares no pairs", config.model);
        return Err(
            PluginError::unsupported(message).with_hint("judge with it as `--oracle reward`")
        );
    }
    let builder = SequenceBuilder::read(&found.path)?;
    let text_files = ["tokenizer.json"].into_iter();
    Ok((builder, ModelJudge::load(&settings, found, text_files, METRICS, services)?))
}

/// The prompt as the ranker sees it.
fn prompt<'a>(comparison: &'a Comparison<'a>, view: PromptView) -> Cow<'a, str> {
    match (view, comparison.rendered_prompt.as_deref()) {
        (PromptView::Templated, Some(rendered)) => rendered.into(),
        _ => conversation_text(&comparison.prompt),
    }
}

#[cfg(test)]
mod tests {
    use sppo_plugin::Message;

    use super::*;

    #[test]
    fn prompts_are_shown_as_rendered_or_as_written() {
        let mut comparison = Comparison {
            prompt: [Message::user("Hi?")].into(),
            rendered_prompt: Some("<s>[INST] Hi? [/INST]".into()),
            candidates: Vec::new().into(),
        };
        assert_eq!(prompt(&comparison, PromptView::Templated), "<s>[INST] Hi? [/INST]");
        assert_eq!(prompt(&comparison, PromptView::Raw), "Hi?");
        comparison.rendered_prompt = None;
        assert_eq!(prompt(&comparison, PromptView::Templated), "Hi?");
        comparison.prompt =
            [Message::user("Hi?"), Message::assistant("Hi."), Message::user("So?")].into();
        assert_eq!(prompt(&comparison, PromptView::Raw), "USER: Hi?\nASSISTANT: Hi.\nUSER: So?");
    }
}

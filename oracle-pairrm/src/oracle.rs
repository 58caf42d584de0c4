//! The oracle: it finds the ranker, shows it all pairs, and hands back their logits.

use std::borrow::Cow;

use sppo_model::serve::ScorerKind;
use sppo_model::serve::judge::{
    JudgeSettings, MetricNames, ModelJudge, Question, Questions, conversation_text,
};
use sppo_plugin::{Comparison, Oracle, Plugin, PluginError, Progress, Services, Verdict};

use crate::config::{PairrmConfig, PromptView};
use crate::layout::Layout;
use crate::pairs::{Pair, pairs};

const METRICS: MetricNames = ["pairs", "pairs_per_second", "ranker_tokens"];

/// Judges answers with a neural ranker.
pub struct PairrmOracle {
    config: PairrmConfig,
    ranker: Option<Ranker>,
    has_told_view: bool,
}

/// The model, once it is loaded.
struct Ranker {
    layout: Layout,
    judge: ModelJudge,
}

impl Plugin for PairrmOracle {
    type Config = PairrmConfig;
    const NAME: &'static str = "pairrm";
    const SUMMARY: &'static str =
        "PairRM, a neural ranker that compares two answers, on the run's backend";

    fn create(config: PairrmConfig) -> Result<Self, PluginError> {
        settings(&config).check("llm-blender/PairRM")?;
        Ok(Self { config, ranker: None, has_told_view: false })
    }
}

impl Oracle for PairrmOracle {
    fn prepare(
        &mut self,
        services: &dyn Services,
        progress: &dyn Progress,
    ) -> Result<(), PluginError> {
        if self.ranker.is_none() {
            self.ranker = Some(Ranker::load(&self.config, services, progress)?);
        }
        Ok(())
    }

    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        progress: &dyn Progress,
    ) -> Result<Vec<Verdict>, PluginError> {
        let Some(ranker) = &mut self.ranker else {
            return Err(PluginError::failed("the ranker is not loaded"));
        };
        let is_raw = |comparison: &Comparison| comparison.rendered_prompt.is_none();
        if self.config.prompt_view == PromptView::Templated
            && comparisons.iter().any(is_raw)
            && !std::mem::replace(&mut self.has_told_view, true)
        {
            tracing::info!(
                "there is no policy whose chat template renders these prompts, so the ranker sees \
                 them as they are"
            );
        }
        let Ranker { layout, judge } = ranker;
        let tables = judge.tables(comparisons, progress, &mut |comparison| {
            questions(layout, comparison, &self.config)
        })?;
        Ok(tables.into_iter().map(Verdict::Logits).collect())
    }

    fn identity(&self) -> Option<String> {
        self.ranker.as_ref().map(|ranker| ranker.judge.identity().to_string())
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

impl Ranker {
    fn load(
        config: &PairrmConfig,
        services: &dyn Services,
        progress: &dyn Progress,
    ) -> Result<Self, PluginError> {
        let settings = settings(config);
        let found = settings.find(progress)?;
        if ScorerKind::read(&found.path)? != ScorerKind::PairRanker {
            let message = format!("{}: scores one answer, and compares no pairs", config.model);
            return Err(
                PluginError::unsupported(message).with_hint("judge with it as `--oracle reward`")
            );
        }
        let layout = Layout::read(&found.path)?;
        let text_files = ["tokenizer.json"].into_iter();
        Ok(Self {
            layout,
            judge: ModelJudge::load(&settings, found, text_files, METRICS, services)?,
        })
    }
}

/// Every pair that is shown of a comparison, and where its logit goes.
fn questions(
    layout: &Layout,
    comparison: &Comparison,
    config: &PairrmConfig,
) -> Result<Questions, PluginError> {
    let texts = comparison.candidates.iter().map(|candidate| &*candidate.text);
    let contents = layout.contents(&prompt(comparison, config.prompt_view), texts)?;
    let pairs = pairs(&contents.candidates, config.orders);
    let question = |pair: Pair| Question {
        sequence: layout.sequence(&contents, pair.first, pair.second),
        entries: pair.entries,
    };
    Ok(Questions {
        table_length: comparison.candidates.len().pow(2),
        asked: pairs.into_iter().map(question).collect(),
    })
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

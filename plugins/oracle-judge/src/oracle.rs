//! The oracle: it has every pair judged in its orders, and counts the verdicts that are none.

use sppo_model::checkpoint::Checkpoint;
use sppo_model::serve::judge::{MetricNames, ModelJudge, PreparedJudge, identity};
use sppo_plugin::pairwise::{self, Orders};
use sppo_plugin::{
    Comparison, ModelSpec, Oracle, Plugin, PluginError, Progress, Services, Verdict,
};

use crate::config::{JudgeConfig, POLICY, START, Undecided};
use crate::labels::LabelVerdict;
use crate::layout::Layout;
use crate::question::Question;

const METRICS: MetricNames = ["questions", "questions_per_second", "judge_tokens"];

/// Judges pairs of responses with a language model.
pub struct JudgeOracle {
    config: JudgeConfig,
    model: PreparedJudge<Layout>,
    totals: Totals,
}

/// Totals since the oracle was made.
#[derive(Clone, Copy, Default)]
struct Totals {
    questions: u64,
    invalid: u64,
    undecided: u64,
    /// Sum of the labels' probabilities.
    mass: f64,
}

impl Plugin for JudgeOracle {
    type Config = JudgeConfig;
    const NAME: &'static str = "judge";
    const SUMMARY: &'static str = "A language model that compares two answers: the policy itself, or another on the run's backend";

    fn create(config: JudgeConfig) -> Result<Self, PluginError> {
        config.check()?;
        Ok(Self { config, model: PreparedJudge::default(), totals: Totals::default() })
    }
}

impl Oracle for JudgeOracle {
    fn prepare(
        &mut self,
        services: &dyn Services,
        progress: &dyn Progress,
    ) -> Result<(), PluginError> {
        self.model.prepare(|| load(&self.config, services, progress))
    }

    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        progress: &dyn Progress,
    ) -> Result<Vec<Verdict>, PluginError> {
        let Self { config, model, totals } = self;
        let (layout, judge) = model.get()?;
        let width = judge.width().max(1);
        let mut asked: Vec<Pairs> = Vec::with_capacity(comparisons.len());
        let log_probs = judge.scores(comparisons, progress, &mut |comparison| {
            let pairs = Pairs::of(comparison, config.orders);
            let sequences = pairs.questions(comparison).map(|question| layout.sequence(question));
            let sequences = sequences.collect();
            asked.push(pairs);
            sequences
        })?;
        let mut verdicts = Vec::with_capacity(comparisons.len());
        for (pairs, log_probs) in asked.iter().zip(&log_probs) {
            let said = log_probs.chunks(width).map(|of_one| layout.labels().verdict(of_one));
            verdicts.push(verdict(pairs, &said.collect::<Vec<_>>(), config, totals)?);
        }
        totals.report(progress);
        Ok(verdicts)
    }

    fn identity(&self) -> Option<String> {
        self.model.identity()
    }

    fn expected_sequences(&self, comparisons: u64, candidates: u64) -> Option<u64> {
        let both = comparisons * candidates * candidates.saturating_sub(1);
        Some(if self.config.orders == Orders::One { both / 2 } else { both })
    }
}

sppo_plugin::export_oracle!(JudgeOracle);

fn load(
    config: &JudgeConfig,
    services: &dyn Services,
    progress: &dyn Progress,
) -> Result<(Layout, ModelJudge), PluginError> {
    let settings = config.found_by();
    let (layout, scorer, identity) = match config.model.as_str() {
        POLICY => {
            let layout = Layout::open(config, &services.starting_model()?)?;
            let scorer = services.policy_scorer(layout.labels().tokens())?;
            (layout, scorer, "the policy itself".into())
        }
        START => {
            let path = services.starting_model()?;
            let layout = Layout::open(config, &path)?;
            let next_tokens = layout.labels().tokens().to_vec();
            let scorer = settings.scorer(&ModelSpec { path, next_tokens }, services)?;
            (layout, scorer, "the starting model".into())
        }
        _ => {
            let found = settings.find(progress)?;
            let layout = Layout::open(config, &found.path)?;
            let identity = identity(&found, &Checkpoint::open(&found.path)?.identity()?.sha256);
            let next_tokens = layout.labels().tokens().to_vec();
            let scorer = settings.scorer(&ModelSpec { path: found.path, next_tokens }, services)?;
            (layout, scorer, identity)
        }
    };
    let judge = ModelJudge::new(scorer, identity, config.batch_tokens, METRICS);
    Ok((layout, judge.sharing_beginnings()))
}

/// The pairs that are shown of the responses of a comparison.
struct Pairs {
    /// For each response, the first one that reads the same.
    same_as: Vec<usize>,
    /// Pairs of such first ones, in the order in which they are asked about: those with the same response in
    /// front stand together, so that their beginning is computed once.
    shown: Vec<(usize, usize)>,
}

impl Pairs {
    fn of(comparison: &Comparison<'_>, orders: Orders) -> Self {
        let texts: Vec<&str> = comparison.candidates.iter().map(|one| &*one.text).collect();
        let first = |text: &&str| texts.iter().position(|other| other == text).unwrap_or_default();
        let same_as: Vec<usize> = texts.iter().map(first).collect();
        let is_first = |index: usize| same_as[index] == index;
        let mut shown = pairwise::pairs(&texts, orders);
        shown.retain(|&(first, second)| is_first(first) && is_first(second));
        shown.sort_unstable();
        Self { same_as, shown }
    }

    fn questions<'a>(
        &'a self,
        comparison: &'a Comparison<'_>,
    ) -> impl Iterator<Item = Question<'a>> {
        let text = |index: usize| &*comparison.candidates[index].text;
        self.shown.iter().map(move |&(first, second)| Question {
            prompt: &comparison.prompt,
            first: text(first),
            second: text(second),
        })
    }

    /// The place of a pair among those that are shown.
    fn place(&self, first: usize, second: usize) -> Option<usize> {
        self.shown.binary_search(&(self.same_as[first], self.same_as[second])).ok()
    }
}

/// The verdict on a comparison, from what the judge says of the pairs that it was shown.
fn verdict(
    pairs: &Pairs,
    said: &[LabelVerdict],
    config: &JudgeConfig,
    totals: &mut Totals,
) -> Result<Verdict, PluginError> {
    for said in said {
        totals.add(*said, config)?;
    }
    let valid = |first: usize, second: usize| {
        said.get(pairs.place(first, second)?)?.valid(config.min_label_probability)
    };
    let size = pairs.same_as.len();
    let undecided = pairwise::probabilities(size, valid).undecided;
    // Responses that read the same were not asked about.
    let is_open = |&&(low, high): &&(usize, usize)| pairs.same_as[low] != pairs.same_as[high];
    let open = undecided.iter().filter(is_open).count() as u64;
    if open > 0 && config.undecided == Undecided::Stop {
        return Err(PluginError::failed(format!(
            "there is no valid verdict on two answers; {}",
            too_little(said.iter().map(|said| said.mass).fold(0.0, f64::max), config)
        ))
        .with_hint(remedy()));
    }
    totals.undecided += open;
    let orders = (0..size * size).map(|index| valid(index / size, index % size));
    Ok(Verdict::Orders(orders.collect()))
}

impl Totals {
    /// Counts a verdict.
    ///
    /// # Errors
    /// When too many were invalid.
    fn add(&mut self, said: LabelVerdict, config: &JudgeConfig) -> Result<(), PluginError> {
        self.questions += 1;
        self.mass += if said.mass.is_finite() { said.mass } else { 0.0 };
        if said.valid(config.min_label_probability).is_some() {
            return Ok(());
        }
        self.invalid += 1;
        if self.invalid as f64 <= (config.max_invalid_share * self.questions as f64).ceil() {
            return Ok(());
        }
        Err(PluginError::failed(format!(
            "{} of {} verdicts are invalid, more than max_invalid_share allows; {}",
            self.invalid,
            self.questions,
            too_little(said.mass, config)
        ))
        .with_hint(remedy()))
    }

    fn report(&self, progress: &dyn Progress) {
        progress.metrics(&[
            ("label_probability", self.mass / self.questions.max(1) as f64),
            ("label_probability_sum", self.mass),
            ("invalid_verdicts", self.invalid as f64),
            ("undecided_pairs", self.undecided as f64),
        ]);
    }
}

/// The lack of probability, in words.
fn too_little(mass: f64, config: &JudgeConfig) -> String {
    format!(
        "the labels `{}` and `{}` have a probability of {mass:.4} together, and \
         min_label_probability is {}",
        config.label_first, config.label_second, config.min_label_probability
    )
}

fn remedy() -> &'static str {
    "make the judge begin its answer with a label (`oracle.judge.answer_prefix`, for instance `The better \
     answer is`, `system` or `template_file`), or take a better judge"
}

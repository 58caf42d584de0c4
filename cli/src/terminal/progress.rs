//! Progress of long work: moving bars on a terminal, a line now and then in a log.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use sppo_core::observer::{Event, Observer, Stage};
use sppo_model::hub::TransferProgress;

use super::forecast::{ExpectedStage, Forecast};
use super::{Terminal, bytes, duration, number};
use crate::interrupt;

/// Interval of lines about the current stage in a log.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Interval of updates of the run's expected time.
const FORECAST_INTERVAL: Duration = Duration::from_millis(500);

/// Progress display of a command.
pub(crate) struct ProgressDisplay {
    terminal: Terminal,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// The current stages: loading a model may be part of another stage.
    stages: Vec<ActiveStage>,
    run: Option<WholeRun>,
    /// The loss of the last optimiser step.
    loss: Option<f64>,
    /// Metrics of the plugin at work, in words.
    metrics: String,
}

struct ActiveStage {
    stage: Stage,
    unit: &'static str,
    started: Instant,
    last_line: Instant,
    completed: u64,
    total: u64,
    bar: ProgressBar,
}

struct WholeRun {
    forecast: Forecast,
    started: Instant,
    iteration: Option<(u32, u32)>,
    last_forecast: Option<Instant>,
    bar: ProgressBar,
}

impl ProgressDisplay {
    pub(crate) fn new(terminal: Terminal) -> Self {
        Self { terminal, state: RefCell::default() }
    }

    /// Also shows the progress of the whole run.
    pub(crate) fn with_forecast(self, stages: Vec<ExpectedStage>) -> Self {
        let bar = self.terminal.bars.add(ProgressBar::new_spinner());
        bar.set_style(template("{spinner} {msg}", ""));
        bar.enable_steady_tick(Duration::from_millis(250));
        self.state.borrow_mut().run = Some(WholeRun {
            forecast: Forecast::new(stages),
            started: Instant::now(),
            iteration: None,
            last_forecast: None,
            bar,
        });
        self
    }

    fn start(&self, stage: Stage, total: u64, unit: &'static str) {
        let bar = ProgressBar::new(total);
        let bar = match &self.state.borrow().run {
            Some(run) => self.terminal.bars.insert_before(&run.bar, bar),
            None => self.terminal.bars.add(bar),
        };
        let layout = "  {prefix:10} [{bar:28}] {percent:>3} %  {rate}  {left}  {msg}";
        bar.set_style(if total > 1 { template(layout, unit) } else { template("  {prefix}", "") });
        bar.set_prefix(label(stage));
        bar.tick();
        let now = Instant::now();
        let mut state = self.state.borrow_mut();
        state.loss = None;
        state.metrics.clear();
        state.stages.push(ActiveStage {
            stage,
            unit,
            started: now,
            last_line: now,
            completed: 0,
            total,
            bar,
        });
    }

    fn advance(&self, completed: u64, total: u64) {
        let mut state = self.state.borrow_mut();
        let State { stages, run, loss, metrics } = &mut *state;
        let Some(stage) = stages.last_mut() else { return };
        (stage.completed, stage.total) = (completed, total);
        stage.bar.set_length(total);
        stage.bar.set_position(completed);
        if let Some(loss) = loss {
            stage.bar.set_message(format!("loss {}", number(*loss)));
        } else if !metrics.is_empty() {
            stage.bar.set_message(metrics.clone());
        }
        if let Some(run) = run {
            run.update(Some(stage));
        }
        if !self.terminal.interactive && stage.last_line.elapsed() >= LINE_INTERVAL {
            stage.last_line = Instant::now();
            let mut line = stage.line();
            if let Some(loss) = loss {
                let _ = write!(line, ", loss {}", number(*loss));
            }
            if !metrics.is_empty() {
                let _ = write!(line, "; {metrics}");
            }
            if let Some(left) = run.as_ref().and_then(|run| run.remaining(Some(stage))) {
                let _ = write!(line, "; whole run: about {} left", duration(left));
            }
            self.terminal.note(&line);
        }
    }

    fn finish(&self, elapsed: Duration, summary: &str) {
        let mut state = self.state.borrow_mut();
        let Some(stage) = state.stages.pop() else { return };
        stage.bar.finish_and_clear();
        self.terminal.bars.remove(&stage.bar);
        if let Some(outer) = state.stages.last_mut() {
            outer.begin();
        }
        let mut line = format!("  {:10} {:>7}", label(stage.stage), duration(elapsed));
        match (summary, state.loss.take()) {
            ("", None) => {}
            ("", Some(loss)) => {
                let _ = write!(line, "  loss {} at the last step", number(loss));
            }
            (summary, _) => {
                let _ = write!(line, "  {summary}");
            }
        }
        let metrics = std::mem::take(&mut state.metrics);
        if !metrics.is_empty() {
            let _ = write!(line, "; {metrics}");
        }
        if let Some(run) = &mut state.run {
            run.forecast.finished(stage.stage, elapsed);
            run.last_forecast = None;
            run.update(None);
        }
        drop(state);
        self.terminal.note(&line);
    }

    fn iteration(&self, iteration: u32, iterations: u32) {
        if let Some(run) = &mut self.state.borrow_mut().run {
            run.iteration = Some((iteration, iterations));
            run.forecast.begin_iteration(iteration);
            run.last_forecast = None;
            run.update(None);
        }
        let heading = format!("iteration {iteration} of {iterations}");
        self.terminal.note(&self.terminal.stderr_style.bold(&heading));
    }
}

impl Observer for ProgressDisplay {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::IterationStarted { iteration, iterations } => {
                self.iteration(iteration, iterations);
            }
            Event::StageStarted { stage, total, unit } => self.start(stage, total, unit),
            Event::StageProgress { completed, total } => self.advance(completed, total),
            Event::StageMetrics(values) => self.state.borrow_mut().metrics = in_words(values),
            Event::StageFinished { elapsed, summary, .. } => self.finish(elapsed, &summary),
            Event::TrainingStep(step) => self.state.borrow_mut().loss = Some(step.loss),
            Event::IterationFinished(_) => {}
            Event::Notice(text) => self.terminal.note(&text),
        }
    }

    fn is_cancelled(&self) -> bool {
        interrupt::requested()
    }
}

impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        for stage in state.stages.drain(..) {
            stage.bar.finish_and_clear();
        }
        if let Some(run) = state.run.take() {
            run.bar.finish_and_clear();
        }
    }
}

impl ActiveStage {
    /// Starts its clock, unless it has made progress already.
    fn begin(&mut self) {
        if self.completed == 0 {
            self.started = Instant::now();
            self.bar.reset_elapsed();
        }
    }

    fn share(&self) -> f64 {
        self.completed as f64 / self.total.max(1) as f64
    }

    /// `  sample     34 %, 310 tokens/s, 1m 10s left`.
    fn line(&self) -> String {
        let elapsed = self.started.elapsed();
        let mut line = format!("  {:10} {:.0} %", label(self.stage), 100.0 * self.share());
        if self.completed > 0 {
            let rate = self.completed as f64 / elapsed.as_secs_f64();
            let left = self.total.saturating_sub(self.completed) as f64 / rate;
            let left = Duration::from_secs_f64(left.clamp(0.0, 1e9));
            let _ = write!(line, ", {} {}/s, {} left", number(rate), self.unit, duration(left));
        }
        line
    }
}

impl WholeRun {
    fn remaining(&self, stage: Option<&ActiveStage>) -> Option<Duration> {
        let current = stage.map(|stage| (stage.stage, stage.share(), stage.started.elapsed()));
        self.forecast.remaining(current)
    }

    fn update(&mut self, stage: Option<&ActiveStage>) {
        if self.last_forecast.is_some_and(|last| last.elapsed() < FORECAST_INTERVAL) {
            return;
        }
        self.last_forecast = Some(Instant::now());
        let mut text = match self.iteration {
            Some((iteration, iterations)) => format!("iteration {iteration} of {iterations}"),
            None => "starting model".into(),
        };
        let elapsed = self.started.elapsed();
        match self.remaining(stage) {
            Some(left) => {
                let (left, whole) = (duration(left), duration(elapsed + left));
                let _ = write!(text, ", about {left} left of {whole}");
            }
            None => text.push_str(", working out how long it will take"),
        }
        self.bar.set_message(text);
    }
}

/// `requests 480, cache hits 20`; zeros are left out, and sums, which are kept for means to come.
fn in_words(metrics: &[(&str, f64)]) -> String {
    let told = metrics.iter().filter(|(name, value)| *value != 0.0 && !name.ends_with("_sum"));
    let words = told.map(|(name, value)| {
        let is_count = value.fract() == 0.0 && value.abs() < 100.0;
        let value = if is_count { format!("{value:.0}") } else { number(*value) };
        format!("{} {value}", name.replace('_', " "))
    });
    words.collect::<Vec<_>>().join(", ")
}

fn label(stage: Stage) -> &'static str {
    match stage {
        Stage::Load => "load",
        Stage::Refresh => "refresh",
        Stage::Sample => "sample",
        Stage::Judge => "judge",
        Stage::Reference => "reference",
        Stage::Train => "train",
        Stage::Save => "save",
        Stage::Evaluate => "evaluate",
    }
}

/// A bar's layout with `{rate}` in units per second and `{left}`, the time to go.
fn template(layout: &str, unit: &'static str) -> ProgressStyle {
    let rate = move |state: &ProgressState, writer: &mut dyn std::fmt::Write| {
        let _ = write!(writer, "{} {unit}/s", number(state.per_sec()));
    };
    let left = |state: &ProgressState, writer: &mut dyn std::fmt::Write| {
        let _ = match state.pos() {
            0 => Ok(()),
            _ => write!(writer, "{} left", duration(state.eta())),
        };
    };
    let received = |state: &ProgressState, writer: &mut dyn std::fmt::Write| {
        let _ = write!(writer, "{} at {}/s", bytes(state.pos()), bytes(state.per_sec() as u64));
    };
    ProgressStyle::with_template(layout)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .with_key("rate", rate)
        .with_key("left", left)
        .with_key("received", received)
}

/// Progress display of files that are fetched or uploaded.
pub(crate) struct Transfer {
    terminal: Terminal,
    /// `fetching` or `uploading`.
    verb: &'static str,
    state: RefCell<Option<TransferState>>,
}

struct TransferState {
    file: String,
    last_line: Instant,
    bar: ProgressBar,
}

impl Transfer {
    pub(super) fn new(terminal: Terminal, verb: &'static str) -> Self {
        Self { terminal, verb, state: RefCell::new(None) }
    }

    /// Shows the progress.
    pub(crate) fn show(&self, progress: &TransferProgress) {
        let mut state = self.state.borrow_mut();
        if state.as_ref().is_none_or(|state| state.file != progress.file) {
            self.terminal.note(&format!("{} {}", self.verb, progress.file));
            if let Some(previous) = state.take() {
                previous.bar.finish_and_clear();
            }
        }
        let state = state.get_or_insert_with(|| {
            let bar = self.terminal.bars.add(ProgressBar::new(progress.total.unwrap_or(0)));
            let layout = match progress.total {
                Some(_) => "  [{bar:28}] {percent:>3} %  {received}  {left}",
                None => "  {spinner} {received}",
            };
            bar.set_style(template(layout, ""));
            TransferState { file: progress.file.clone(), last_line: Instant::now(), bar }
        });
        state.bar.set_position(progress.done);
        if let Some(total) = progress.total {
            state.bar.set_length(total);
        }
        if !self.terminal.interactive && state.last_line.elapsed() >= LINE_INTERVAL {
            state.last_line = Instant::now();
            let of = progress.total.map(|total| format!(" of {}", bytes(total)));
            let received = bytes(progress.done);
            self.terminal.note(&format!("  {received}{}", of.unwrap_or_default()));
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Some(state) = self.state.get_mut().take() {
            state.bar.finish_and_clear();
        }
    }
}

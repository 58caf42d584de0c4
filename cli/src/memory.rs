//! Comparison of planned work with this machine's memory, before anything is loaded.

use std::path::Path;

use serde::Serialize;
use sppo_core::config::Config;
use sppo_core::plugin::{
    Backend, DeviceMemory, MemoryEstimate, PlannedSampling, PlannedTraining, PlannedWork,
    PolicySpec, Sharding,
};
use sppo_core::selection::SelectionStrategy;
use sppo_core::stages::{Recomputation, ShardingChoice};
use sppo_core::{Error, Result};

use crate::team;
use crate::terminal::{Alignment, Style, Table, Terminal};

/// Memory of the machine, of the container that this program runs in, or of the device that computes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct MachineMemory {
    pub(crate) total: u64,
    /// Memory available at this moment.
    pub(crate) available: u64,
    /// Whether it is the device's, of which each process has its own.
    #[serde(skip)]
    pub(crate) is_of_device: bool,
}

impl MachineMemory {
    /// Memory of what holds the backend's models; `None` if that is not known.
    fn of(backend: &dyn Backend) -> Option<Self> {
        let device = backend.device_memory();
        let device =
            device.inspect_err(|error| tracing::debug!(%error, "the device's memory is not known"));
        match device.ok()? {
            None => Self::now(),
            Some(DeviceMemory { total, free }) => {
                Some(Self { total, available: free, is_of_device: true })
            }
        }
    }

    fn name(self) -> &'static str {
        if self.is_of_device { "the device" } else { "this machine" }
    }

    /// `None` if the system does not report it.
    pub(crate) fn now() -> Option<Self> {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        let machine = Self {
            total: system.total_memory(),
            available: system.available_memory(),
            is_of_device: false,
        };
        let allowed = match system.cgroup_limits() {
            Some(limits) => Self {
                total: machine.total.min(limits.total_memory),
                // Its `free_memory` takes cached files for used, which are given up when memory is short.
                available: machine.available.min(limits.total_memory.saturating_sub(limits.rss)),
                ..machine
            },
            None => machine,
        };
        (allowed.total > 0).then_some(allowed)
    }
}

/// Memory of the planned work beside the machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct MemoryPlan {
    /// Of one process: that which needs most.
    pub(crate) estimate: MemoryEstimate,
    /// Processes on this machine, each of which needs as much.
    pub(crate) processes: u64,
    /// Parts of the training state that the ranks divide.
    pub(crate) sharding: Sharding,
    /// Whether the backward pass computes activations again.
    pub(crate) recompute_activations: bool,
    pub(crate) machine: Option<MachineMemory>,
}

impl MemoryPlan {
    /// `None` if the backend does not estimate it.
    pub(crate) fn new(
        backend: &dyn Backend,
        spec: &PolicySpec,
        work: &PlannedWork,
    ) -> Option<Self> {
        let estimate = backend.estimate_memory(spec, work);
        let estimate = estimate
            .inspect_err(|error| tracing::debug!(%error, "there is no memory estimate"))
            .ok()?;
        Some(Self {
            estimate,
            processes: team::processes_here() as u64,
            sharding: spec.sharding,
            recompute_activations: spec.recompute_activations,
            machine: MachineMemory::of(backend),
        })
    }

    /// The most that is taken at a time: by all processes of this machine together, or on a device by its one.
    fn peak(&self) -> u64 {
        let has_own_device = self.machine.is_some_and(|machine| machine.is_of_device);
        self.estimate.peak() * if has_own_device { 1 } else { self.processes }
    }

    /// Whether there is room beside everything else that the machine does, as far as is known.
    pub(crate) fn fits_now(&self) -> bool {
        self.machine.is_none_or(|machine| self.peak() <= machine.available)
    }

    /// Whether there is room when the machine does nothing else, as far as is known.
    pub(crate) fn fits_machine(&self) -> bool {
        self.machine.is_none_or(|machine| self.peak() <= machine.total)
    }

    /// A warning when there is room only if other programs release memory.
    pub(crate) fn warning(&self) -> Option<String> {
        let machine = self.machine.filter(|_| self.fits_machine() && !self.fits_now())?;
        Some(format!(
            "up to {} of memory are needed, and {} are free now; end other programs",
            gibibytes(self.peak()),
            gibibytes(machine.available)
        ))
    }

    /// Refuses what cannot fit.
    pub(crate) fn require_fit(&self) -> Result<()> {
        let Some(machine) = self.machine.filter(|_| !self.fits_machine()) else { return Ok(()) };
        let stages = self.estimate.stages();
        let fullest = stages.iter().max_by_key(|(_, stage)| stage.total());
        let (stage, needed) = fullest.map_or(("", 0), |(name, stage)| (*name, stage.total()));
        let processes = match self.processes {
            1 => String::new(),
            processes => format!(" in each of {processes} processes"),
        };
        Err(Error::configuration(
            "memory",
            format!(
                "{stage} would take {}{processes}, and {} has {}",
                gibibytes(needed),
                machine.name(),
                gibibytes(machine.total)
            ),
        )
        .with_hint(
            "train adapters with --lora-rank 16, set training.recompute_activations = true or \
             training.gradient_dtype = \"bf16\" (backend tch), ask for shorter answers with --max-new-tokens, or choose a smaller model; --ignore-memory \
             starts regardless, --dry-run shows the parts",
        ))
    }

    /// The parts by stage, one line each.
    pub(crate) fn lines(&self, style: Style) -> Vec<String> {
        let stages = self.estimate.stages();
        let mut columns = vec![("GiB", Alignment::Left)];
        columns.extend(stages.iter().map(|(name, _)| (*name, Alignment::Right)));
        let mut table = Table::new(&columns);
        let cell =
            |bytes: u64| if bytes == 0 { "-".into() } else { format!("{:.2}", in_gib(bytes)) };
        for (index, (part, _)) in self.estimate.loading.parts().into_iter().enumerate() {
            let of_stages = stages.iter().map(|(_, stage)| cell(stage.parts()[index].1));
            table.row(std::iter::once(part.to_string()).chain(of_stages));
        }
        let totals = stages.iter().map(|(_, stage)| cell(stage.total()));
        table.row(std::iter::once("in all".to_string()).chain(totals));
        let mut lines: Vec<String> = table.render(style).lines().map(String::from).collect();
        if self.processes > 1 {
            lines.push(format!(
                "in each of {} processes on this machine, with {}",
                self.processes,
                described(self.sharding)
            ));
        }
        if self.recompute_activations {
            lines.push("activations are computed again in the backward pass".into());
        }
        lines.push(match self.machine {
            Some(machine) => format!(
                "{} has {}, of which {} are free",
                machine.name(),
                gibibytes(machine.total),
                gibibytes(machine.available)
            ),
            None => "how much there is is not known".into(),
        });
        lines
    }
}

fn described(sharding: Sharding) -> &'static str {
    match sharding {
        Sharding::None => "nothing divided among ranks",
        Sharding::Optimizer => "the optimiser's state divided among ranks",
        Sharding::Gradients => "the optimiser's state and the gradients divided among ranks",
    }
}

/// The most memory that this process has had in RAM, in bytes, from the kernel's own accounting; not known
/// elsewhere than on Linux.
pub(crate) fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes << 10)
}

/// Bytes in GiB.
pub(crate) fn in_gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// `3.25 GiB`.
pub(crate) fn gibibytes(bytes: u64) -> String {
    format!("{:.2} GiB", in_gib(bytes))
}

/// Sizes of a run's prompts for a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PromptSizes {
    /// Prompts of an iteration.
    pub(crate) training: usize,
    /// Held-out prompts.
    pub(crate) held_out: usize,
    /// Tokens of the longest.
    pub(crate) longest: usize,
    /// Limit of prompt and response together, in tokens.
    pub(crate) context_length: usize,
}

/// Divisions among ranks, from none on: for `auto` one after the other is to be tried.
pub(crate) fn shardings(config: &Config, ranks: usize) -> Vec<Sharding> {
    match config.training.sharding {
        ShardingChoice::Auto if ranks > 1 => {
            vec![Sharding::None, Sharding::Optimizer, Sharding::Gradients]
        }
        _ => vec![config.training.sharding()],
    }
}

/// Whether to compute activations again, in the order in which the choices are to be tried.
pub(crate) fn recomputations(config: &Config) -> &'static [bool] {
    match config.training.recompute_activations {
        Recomputation::Auto => &[false, true],
        Recomputation::Always => &[true],
        Recomputation::Never => &[false],
    }
}

/// Tells the user that activations are computed again, where nobody asked for it.
pub(crate) fn note_recomputation(config: &Config, terminal: &Terminal) {
    let training = &config.training;
    if training.recompute_activations == Recomputation::Auto && training.recomputes_to_fit {
        terminal.note("memory is short: activations are computed again in the backward pass");
    }
}

/// Whether `auto` comes to a division after `smaller` did not fit what is free now. Gradients that are divided
/// may be rounded otherwise, so whether they are must not depend on what else this machine does.
pub(crate) fn comes_to(sharding: Sharding, smaller: Option<&MemoryPlan>) -> bool {
    let is_enough = |plan: &MemoryPlan| plan.sharding == Sharding::Optimizer && plan.fits_machine();
    sharding != Sharding::Gradients || !smaller.is_some_and(is_enough)
}

/// Division among ranks where the backend does not predict its memory: one that changes no result.
pub(crate) const UNPREDICTED_SHARDING: Sharding = Sharding::Optimizer;

/// Settles what `auto` divides and whether it computes activations again, for training on micro-batches that are
/// full. A user who asked to divide is told where there is nothing to divide among.
pub(crate) fn settle_training(
    config: &mut Config,
    backend: &dyn Backend,
    path: &Path,
    terminal: &Terminal,
) {
    let ranks = backend.place().size;
    let work = PlannedWork {
        sampling: Vec::new(),
        training: Some(PlannedTraining {
            optimizer: config.training.optimizer.clone(),
            tokens: config.training.micro_batch_tokens,
            predicted_tokens: config.training.micro_batch_tokens,
        }),
    };
    let unpredicted = if ranks == 1 { Sharding::None } else { UNPREDICTED_SHARDING };
    let shardings = shardings(config, ranks);
    let choices = recomputations(config)
        .iter()
        .flat_map(|recompute| shardings.iter().map(move |sharding| (*recompute, *sharding)));
    let (mut settled, mut smaller) = ((false, unpredicted), None);
    for (recompute, sharding) in choices {
        if !comes_to(sharding, smaller.as_ref()) {
            continue;
        }
        (config.training.recomputes_to_fit, config.training.fitting_sharding) =
            (recompute, sharding);
        let spec = config.policy_spec(path.to_path_buf());
        let Some(plan) = MemoryPlan::new(backend, &spec, &work) else { break };
        settled = (recompute, sharding);
        if plan.fits_now() {
            break;
        }
        smaller = Some(plan);
    }
    (config.training.recomputes_to_fit, config.training.fitting_sharding) = settled;
    note_recomputation(config, terminal);
    note_if_alone(config, ranks, terminal);
}

/// Tells a user who asked to divide that there is nothing to divide among.
pub(crate) fn note_if_alone(config: &Config, ranks: usize, terminal: &Terminal) {
    if ranks == 1 && config.training.sharding() != Sharding::None {
        terminal.note("training.sharding divides nothing: this is one process");
    }
}

/// The largest pieces of a run's work, of one of so many ranks.
pub(crate) fn run_work(config: &Config, prompts: PromptSizes, ranks: usize) -> PlannedWork {
    let Config { sampling, training, selection, evaluation, .. } = config;
    let responses = match selection.strategy {
        SelectionStrategy::BestAndWorst => 2,
        SelectionStrategy::All => sampling.samples_per_prompt,
    };
    let room = prompts.context_length.saturating_sub(prompts.longest);
    let answers = responses * sampling.max_new_tokens.min(room);
    let longest = prompts.longest + answers;
    let examples = training.global_batch_size.div_ceil(ranks);
    let tokens = batch_tokens(config, examples.saturating_mul(longest), longest);
    let training_request =
        (prompts.training.min(sampling.prompts_per_shard), sampling.samples_per_prompt);
    let held_out_request = evaluation
        .enabled
        .then_some((prompts.held_out.div_ceil(ranks), evaluation.samples_per_prompt));
    let requests = std::iter::once(training_request).chain(held_out_request);
    let requests = requests.map(|(prompt_count, samples_per_prompt)| PlannedSampling {
        prompts: prompt_count,
        longest_prompt: prompts.longest,
        samples_per_prompt,
        max_new_tokens: sampling.max_new_tokens,
    });
    PlannedWork {
        sampling: requests.collect(),
        training: Some(PlannedTraining {
            optimizer: training.optimizer.clone(),
            tokens,
            predicted_tokens: tokens * answers / longest.max(1),
        }),
    }
}

/// Tokens that go through the policy at once where a step has `step` tokens and an example up to
/// `longest`.
pub(crate) fn batch_tokens(config: &Config, step: usize, longest: usize) -> usize {
    step.min(config.training.micro_batch_tokens).max(longest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sppo_core::plugin::MemoryUse;

    fn plan(total: u64) -> MemoryPlan {
        let stage =
            |weights, activations| MemoryUse { weights, activations, ..MemoryUse::default() };
        MemoryPlan {
            estimate: MemoryEstimate {
                sampling: stage(3 << 30, 0),
                training: stage(3 << 30, 1 << 29),
                ..MemoryEstimate::default()
            },
            processes: 1,
            sharding: Sharding::None,
            recompute_activations: false,
            machine: Some(MachineMemory { total, available: total / 2, is_of_device: false }),
        }
    }

    #[test]
    fn what_cannot_fit_is_refused_with_its_stage() {
        plan(4 << 30).require_fit().unwrap();
        let refused = plan(3 << 30).require_fit().unwrap_err().to_string();
        assert!(refused.contains("training would take 3.50 GiB"), "{refused}");
        assert!(refused.contains("this machine has 3.00 GiB"), "{refused}");
    }

    #[test]
    fn what_fits_only_into_an_idle_machine_is_warned_of() {
        assert_eq!(plan(8 << 30).warning(), None);
        let warning = plan(4 << 30).warning().unwrap();
        assert!(
            warning.contains("3.50 GiB of memory are needed, and 2.00 GiB are free"),
            "{warning}"
        );
        assert_eq!(plan(3 << 30).warning(), None);
    }

    #[test]
    fn each_process_of_this_machine_takes_its_part_of_it() {
        let plan = MemoryPlan { processes: 2, ..plan(8 << 30) };
        assert!(plan.fits_machine() && !plan.fits_now());
        let plan = MemoryPlan { processes: 3, ..plan };
        let refused = plan.require_fit().unwrap_err().to_string();
        assert!(refused.contains("3.50 GiB in each of 3 processes"), "{refused}");
    }

    #[test]
    fn each_process_has_a_device_of_its_own() {
        let machine = MachineMemory { total: 4 << 30, available: 4 << 30, is_of_device: true };
        let plan = MemoryPlan { processes: 3, machine: Some(machine), ..plan(0) };
        assert!(plan.fits_now());
        let machine = MachineMemory { total: 3 << 30, ..machine };
        let plan = MemoryPlan { machine: Some(machine), ..plan };
        let refused = plan.require_fit().unwrap_err().to_string();
        assert!(refused.contains("and the device has 3.00 GiB"), "{refused}");
    }

    #[test]
    fn gradients_are_divided_only_where_the_machine_is_too_small_for_anything_else() {
        let optimizer = |total| MemoryPlan { sharding: Sharding::Optimizer, ..plan(total) };
        assert!(comes_to(Sharding::Optimizer, Some(&plan(4 << 30))));
        assert!(!comes_to(Sharding::Gradients, Some(&optimizer(4 << 30))));
        assert!(comes_to(Sharding::Gradients, Some(&optimizer(3 << 30))));
    }

    #[test]
    fn the_longest_example_is_computed_whole() {
        let mut config = Config::default();
        config.training.micro_batch_tokens = 1000;
        assert_eq!(batch_tokens(&config, 10_000, 300), 1000);
        assert_eq!(batch_tokens(&config, 600, 300), 600);
        assert_eq!(batch_tokens(&config, 10_000, 1300), 1300);
    }
}

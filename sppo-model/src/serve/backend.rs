//! The compute backend that any op set makes, and the setting of the allocator that suits its buffers.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Once;
use std::time::Instant;

use sppo_plugin::{
    Backend, DeviceMemory, MemoryEstimate, ModelSpec, PlannedWork, PluginError, Policy, PolicySpec,
    Progress, Scorer, TeamPlace,
};

use super::memory_estimate::MemoryTraits;
use super::next_token::{AskedPolicy, load_next_token_scorer};
use super::policy::{DecoderPolicy, estimate_policy_memory};
use super::scorer::load_scorer;
use super::team::{Collective, Controller, Member, TeamPolicy, TeamScorer};
use crate::error::{ModelError, Result};
use crate::generation::GenerationLimits;
use crate::ops::encoder::EncoderOps;

/// A compute backend on an op set: decoders become policies, encoders scorers.
pub struct ModelBackend<O: EncoderOps + Clone> {
    ops: O,
    limits: GenerationLimits,
    memory: Option<MemoryTraits>,
    team: Team<O>,
}

/// The part that this process has in holding models.
enum Team<O: EncoderOps + Clone> {
    /// All of them alone.
    Alone,
    /// A replica of each, as rank 0.
    Controller(Rc<Controller<O>>),
    /// A replica of each, as another rank.
    Member { place: TeamPlace, member: RefCell<Member<O>> },
}

impl<O: EncoderOps + Clone> ModelBackend<O> {
    /// A backend whose policies sample within `limits`. It estimates memory if `memory` describes the op
    /// set.
    pub fn new(ops: O, limits: GenerationLimits, memory: Option<MemoryTraits>) -> Self {
        Self { ops, limits, memory, team: Team::Alone }
    }

    /// Holds models together with other processes, each of which makes the same backend.
    #[must_use]
    pub fn with_team(mut self, collective: Rc<dyn Collective<O>>) -> Self {
        let place = TeamPlace { rank: collective.rank(), size: collective.size() };
        let member = Member::new(self.ops.clone(), self.limits, collective);
        self.team = match place.rank {
            0 => Team::Controller(Controller::new(member)),
            _ => Team::Member { place, member: RefCell::new(member) },
        };
        self
    }
}

/// An op set whose matrix products can be timed.
pub trait MatrixRate {
    /// A function that multiplies `[rows, inner] x [inner, columns]` once, in the compute dtype, and returns
    /// when that is done.
    ///
    /// # Errors
    /// When the operands cannot be made.
    fn matrix_product(&self, shape: [usize; 3]) -> Result<impl FnMut() -> Result<()>>;
}

impl<O: EncoderOps + MatrixRate + Clone> Backend for ModelBackend<O> {
    fn place(&self) -> TeamPlace {
        match &self.team {
            Team::Alone => TeamPlace::ALONE,
            Team::Controller(controller) => TeamPlace { rank: 0, size: controller.size() },
            Team::Member { place, .. } => *place,
        }
    }

    fn serve(&self, progress: &dyn Progress) -> std::result::Result<(), PluginError> {
        keep_large_buffers();
        match &self.team {
            Team::Member { member, .. } => member.borrow_mut().serve(progress),
            _ => Err(PluginError::failed("this process leads its team, and serves none")),
        }
    }

    fn load_policy(&self, spec: &PolicySpec) -> std::result::Result<Box<dyn Policy>, PluginError> {
        keep_large_buffers();
        Ok(match &self.team {
            Team::Alone => Box::new(DecoderPolicy::load(self.ops.clone(), spec, self.limits)?),
            Team::Controller(team) => Box::new(TeamPolicy::load(Rc::clone(team), spec)?),
            Team::Member { .. } => return Err(serves()),
        })
    }

    fn load_scorer(&self, model: &ModelSpec) -> std::result::Result<Box<dyn Scorer>, PluginError> {
        keep_large_buffers();
        let ModelSpec { path, next_tokens } = model;
        let has_own_head = next_tokens.is_empty();
        Ok(match &self.team {
            Team::Alone if has_own_head => load_scorer(self.ops.clone(), path)?,
            Team::Alone => load_next_token_scorer(self.ops.clone(), path, next_tokens)?,
            Team::Controller(team) if has_own_head => {
                Box::new(TeamScorer::load(Rc::clone(team), path)?)
            }
            Team::Controller(_) => Box::new(AskedPolicy {
                policy: self.load_policy(&PolicySpec::new(path))?,
                next_tokens: next_tokens.clone(),
            }),
            Team::Member { .. } => return Err(serves()),
        })
    }

    fn estimate_memory(
        &self,
        spec: &PolicySpec,
        work: &PlannedWork,
    ) -> std::result::Result<MemoryEstimate, PluginError> {
        let traits = self.memory.ok_or_else(|| {
            PluginError::unsupported(
                "this backend does not estimate its memory with these settings",
            )
        })?;
        Ok(estimate_policy_memory(spec, traits, self.limits, self.place().size, work)?)
    }

    fn device_memory(&self) -> std::result::Result<Option<DeviceMemory>, PluginError> {
        Ok(self.ops.device_memory()?)
    }

    fn matrix_product_rate(
        &self,
        rows: usize,
        inner: usize,
        columns: usize,
    ) -> std::result::Result<f64, PluginError> {
        Ok(rate([rows, inner, columns], &self.ops)?)
    }
}

fn serves() -> PluginError {
    PluginError::failed("this process serves rank 0, and loads nothing by itself")
}

/// Time for which products are repeated, in seconds.
const SECONDS: f64 = 1.0;

/// GFLOP/s of the median of many products. The fastest would say what the machine does when nobody else is
/// on it, which work that lasts for minutes cannot be compared with.
fn rate([rows, inner, columns]: [usize; 3], ops: &impl MatrixRate) -> Result<f64> {
    if rows == 0 || inner == 0 || columns == 0 {
        return Err(ModelError::Input("a matrix product of no elements has no rate".into()));
    }
    let flops = 2.0 * rows as f64 * inner as f64 * columns as f64;
    let mut product = ops.matrix_product([rows, inner, columns])?;
    product()?;
    let begin = Instant::now();
    let mut seconds = Vec::new();
    while begin.elapsed().as_secs_f64() < SECONDS {
        let start = Instant::now();
        product()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN);
    Ok(flops / median / 1e9)
}

static KEEP_LARGE_BUFFERS: Once = Once::new();

/// Makes freed buffers stay with the process. A forward pass allocates and frees hundreds of
/// megabytes; by default glibc returns them to the system each time, and each time the kernel must
/// supply zeroed pages again, which costs about 15 % of a training step.
///
/// Comes with the first model: what is done before, such as reading prompts, is done on several threads, which do
/// better with arenas of their own. Does nothing where the C library is not glibc.
pub fn keep_large_buffers() {
    KEEP_LARGE_BUFFERS.call_once(configure_allocator);
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn configure_allocator() {
    let settings = [
        // One arena: others return whole 64 MiB heaps as soon as they are empty.
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_MAX, 0),
        (libc::M_TRIM_THRESHOLD, i32::MAX),
        (libc::M_TOP_PAD, 64 << 20),
    ];
    for (parameter, value) in settings {
        // SAFETY: `mallopt` takes plain integers and locks the allocator itself.
        let accepted = unsafe { libc::mallopt(parameter, value) };
        if accepted == 0 {
            tracing::debug!(parameter, value, "the allocator refused a setting");
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn configure_allocator() {}

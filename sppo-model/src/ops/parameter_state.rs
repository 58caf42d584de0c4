//! State that training keeps beside a weight: its gradient, and the tensors of the optimiser.

use sppo_plugin::Optimizer;

use crate::error::ModelError;

/// Memory of a weight's gradient. A cleared gradient keeps its memory for the next backward pass to
/// overwrite, which saves zeroing it.
#[derive(Debug, Default)]
pub enum GradientSlot<T> {
    /// No memory, no gradient.
    #[default]
    Absent,
    /// Memory whose values are old.
    Cleared(T),
    /// The gradient so far.
    Accumulated(T),
}

/// Relation of a backward pass to the values that the gradient's memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulation {
    /// They are old and must be overwritten.
    Overwrite,
    /// They must be added to.
    Add,
}

impl<T> GradientSlot<T> {
    /// The accumulated gradient, if any.
    pub fn get(&self) -> Option<&T> {
        match self {
            Self::Accumulated(gradient) => Some(gradient),
            Self::Absent | Self::Cleared(_) => None,
        }
    }

    /// Lets `add` write to the gradient, in memory from `allocate` where there is none yet. An error
    /// leaves no gradient.
    ///
    /// # Errors
    /// Those of `allocate` and `add`.
    pub fn accumulate<E>(
        &mut self,
        allocate: impl FnOnce() -> Result<T, E>,
        add: impl FnOnce(&mut T, Accumulation) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut gradient, accumulation) = match std::mem::take(self) {
            Self::Absent => (allocate()?, Accumulation::Overwrite),
            Self::Cleared(memory) => (memory, Accumulation::Overwrite),
            Self::Accumulated(gradient) => (gradient, Accumulation::Add),
        };
        add(&mut gradient, accumulation)?;
        *self = Self::Accumulated(gradient);
        Ok(())
    }

    /// The accumulated gradient, if any, with its memory.
    pub fn take(&mut self) -> Option<T> {
        match std::mem::take(self) {
            Self::Accumulated(gradient) => Some(gradient),
            other => {
                *self = other;
                None
            }
        }
    }

    /// Forgets the gradient and keeps its memory.
    pub fn clear(&mut self) {
        *self = match std::mem::take(self) {
            Self::Accumulated(memory) => Self::Cleared(memory),
            other => other,
        };
    }

    /// Frees memory that holds no gradient.
    pub fn free_cleared(&mut self) {
        if matches!(self, Self::Cleared(_)) {
            *self = Self::Absent;
        }
    }
}

/// Number of state tensors per weight: the mean square; both moments; the velocity.
pub fn state_count(optimizer: &Optimizer) -> usize {
    match optimizer {
        Optimizer::RmsProp { .. } => 1,
        Optimizer::AdamW { .. } => 2,
        Optimizer::Sgd { momentum } => usize::from(*momentum != 0.0),
    }
}

/// Makes the optimiser's state from `zeros` before a weight's first update; later, checks that there is
/// as much of it as the optimiser keeps.
///
/// # Errors
/// When the state that was loaded is another optimiser's, or `zeros` fails.
pub fn ensure_state<T, E: From<ModelError>>(
    state: &mut Vec<T>,
    optimizer: &Optimizer,
    zeros: impl Fn() -> Result<T, E>,
) -> Result<(), E> {
    let count = state_count(optimizer);
    if state.is_empty() {
        *state = (0..count).map(|_| zeros()).collect::<Result<_, E>>()?;
    }
    if state.len() == count {
        return Ok(());
    }
    let loaded = state.len();
    Err(ModelError::Backend(format!(
        "the optimiser keeps {count} state tensors per weight, {loaded} were loaded"
    ))
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds 1 and says how.
    fn add(slot: &mut GradientSlot<i32>) -> Accumulation {
        let mut seen = None;
        let write = |value: &mut i32, accumulation| {
            seen = Some(accumulation);
            *value = 1 + if accumulation == Accumulation::Add { *value } else { 0 };
            Ok::<_, ()>(())
        };
        slot.accumulate(|| Ok(7), write).unwrap();
        seen.unwrap()
    }

    #[test]
    fn a_cleared_gradient_is_gone_and_its_memory_overwritten() {
        let mut slot = GradientSlot::default();
        assert_eq!((add(&mut slot), slot.get()), (Accumulation::Overwrite, Some(&1)));
        assert_eq!((add(&mut slot), slot.get()), (Accumulation::Add, Some(&2)));
        slot.free_cleared();
        assert_eq!(slot.get(), Some(&2));
        slot.clear();
        assert!(matches!(slot, GradientSlot::Cleared(2)) && slot.get().is_none());
        assert_eq!((add(&mut slot), slot.get()), (Accumulation::Overwrite, Some(&1)));
        slot.clear();
        slot.free_cleared();
        assert!(matches!(slot, GradientSlot::Absent));
    }

    #[test]
    fn the_state_of_another_optimiser_is_refused() {
        let adam_w = Optimizer::AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1 };
        let zeros = || Ok::<_, ModelError>(0.0);
        let mut state = Vec::new();
        ensure_state(&mut state, &adam_w, zeros).unwrap();
        assert_eq!(state, [0.0; 2]);
        ensure_state(&mut state, &adam_w, zeros).unwrap();
        let error = ensure_state(&mut state, &Optimizer::default(), zeros).unwrap_err();
        assert!(error.to_string().contains("keeps 1 state tensors per weight, 2 were"), "{error}");
        ensure_state(&mut Vec::new(), &Optimizer::Sgd { momentum: 0.0 }, zeros).unwrap();
    }
}

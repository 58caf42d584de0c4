//! The named weights of a model.

use super::Ops;
use crate::error::Result;
use crate::formats::QuantizedMatrix;

/// The index of a parameter in its [`ParameterStore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterId(usize);

impl ParameterId {
    /// The index of the parameter that is pushed after `index` others.
    pub(crate) fn nth(index: usize) -> Self {
        Self(index)
    }

    /// Number of parameters that were pushed before it.
    #[must_use]
    pub fn index(self) -> usize {
        self.0
    }
}

/// A weight and its name in the checkpoint.
#[derive(Debug)]
pub struct NamedParameter<P> {
    /// The Hugging Face name, for instance `model.norm.weight`.
    pub name: String,
    /// Rank 1 or 2.
    pub shape: Vec<usize>,
    /// Whether it is trained.
    pub trainable: bool,
    /// The op set's own form of it.
    pub value: P,
}

/// All weights of a model, in the order of the forward pass.
pub struct ParameterStore<O: Ops> {
    entries: Vec<NamedParameter<O::Parameter>>,
}

impl<O: Ops> Default for ParameterStore<O> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<O: Ops> ParameterStore<O> {
    /// Adds a weight from row-major values.
    ///
    /// # Errors
    /// When the op set cannot hold it.
    pub fn push(
        &mut self,
        ops: &O,
        name: String,
        shape: Vec<usize>,
        values: Vec<f32>,
        trainable: bool,
    ) -> Result<ParameterId> {
        let value = ops.parameter(values, &shape, trainable)?;
        Ok(self.add(NamedParameter { name, shape, trainable, value }))
    }

    /// As [`Self::push`], a weight whose rows are looked up.
    ///
    /// # Errors
    /// As there.
    pub fn push_table(
        &mut self,
        ops: &O,
        name: String,
        shape: Vec<usize>,
        values: Vec<f32>,
        trainable: bool,
    ) -> Result<ParameterId> {
        let value = ops.table(values, &shape, trainable)?;
        Ok(self.add(NamedParameter { name, shape, trainable, value }))
    }

    /// Adds a matrix that is never trained and stays in its blocks.
    ///
    /// # Errors
    /// When the op set keeps no blocks.
    pub fn push_quantized(
        &mut self,
        ops: &O,
        name: String,
        matrix: QuantizedMatrix,
    ) -> Result<ParameterId> {
        let shape = matrix.dimensions().to_vec();
        let value = ops.quantized(matrix)?;
        Ok(self.add(NamedParameter { name, shape, trainable: false, value }))
    }

    fn add(&mut self, parameter: NamedParameter<O::Parameter>) -> ParameterId {
        self.entries.push(parameter);
        ParameterId(self.entries.len() - 1)
    }

    /// The op set's form of a weight.
    #[must_use]
    pub fn get(&self, id: ParameterId) -> &O::Parameter {
        &self.entries[id.0].value
    }

    /// The op set's form of a weight, to be changed.
    pub fn get_mut(&mut self, id: ParameterId) -> &mut O::Parameter {
        &mut self.entries[id.0].value
    }

    /// Two weights at once, to be changed; the second may be absent.
    pub(crate) fn pair_mut(
        &mut self,
        first: ParameterId,
        second: Option<ParameterId>,
    ) -> (&mut O::Parameter, Option<&mut O::Parameter>) {
        let Some(second) = second.filter(|second| *second != first) else {
            return (self.get_mut(first), None);
        };
        let (low, high) = (first.0.min(second.0), first.0.max(second.0));
        let (head, tail) = self.entries.split_at_mut(high);
        let (low, high) = (&mut head[low].value, &mut tail[0].value);
        if first.0 < second.0 { (low, Some(high)) } else { (high, Some(low)) }
    }

    /// Whether a weight is trained.
    #[must_use]
    pub fn is_trainable(&self, id: ParameterId) -> bool {
        self.entries[id.0].trainable
    }

    /// All weights with their names.
    #[must_use]
    pub fn entries(&self) -> &[NamedParameter<O::Parameter>] {
        &self.entries
    }

    /// All weights with their names, to be changed.
    pub fn entries_mut(&mut self) -> &mut [NamedParameter<O::Parameter>] {
        &mut self.entries
    }

    /// Number of values in all weights.
    #[must_use]
    pub fn element_count(&self) -> u64 {
        self.entries.iter().map(|entry| entry.shape.iter().product::<usize>() as u64).sum()
    }
}

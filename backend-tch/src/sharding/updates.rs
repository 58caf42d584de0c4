//! Parts of weights and of the optimiser's state, on their way between ranks.

use std::collections::VecDeque;

use sppo_model::Result;
use sppo_model::ops::ParameterStore;
use tch::{Kind, Tensor};

use super::{Division, Shares};
use crate::ops::TchOps;
use crate::parameter::Parameter;
use crate::process_group::UnderWay;
use crate::tensors::{TorchResult, download};

/// Operations that are under way at the same time.
const MOST_UNDER_WAY: usize = 64;

/// Broadcasts that were begun.
struct Broadcasts<'a> {
    division: &'a Division,
    under_way: VecDeque<UnderWay>,
}

impl<'a> Broadcasts<'a> {
    fn new(division: &'a Division) -> Self {
        Self { division, under_way: VecDeque::new() }
    }

    /// Begins to make every part of a whole tensor that of the rank which owns it.
    fn begin(&mut self, whole: &Tensor, shares: &Shares) -> Result<()> {
        for (rank, part) in shares.all().enumerate().filter(|(_, part)| part.length() > 0) {
            if self.under_way.len() >= MOST_UNDER_WAY {
                self.finish(1)?;
            }
            let begun = self.division.group.begin_broadcast(part.of(whole)?, rank)?;
            self.under_way.push_back(begun);
        }
        Ok(())
    }

    /// Waits for those that were begun first.
    fn finish(&mut self, count: usize) -> Result<()> {
        for under_way in self.under_way.drain(..count) {
            // The part stands in the memory of the whole.
            let _ = self.division.group.finish(under_way)?;
        }
        Ok(())
    }

    fn finish_all(&mut self) -> Result<()> {
        self.finish(self.under_way.len())
    }
}

impl Division {
    /// A whole tensor of the parts that all ranks have of it, as values on rank 0.
    fn gather(&self, own: &Tensor, shares: &Shares, shape: [i64; 1]) -> Result<Vec<f32>> {
        let whole = || -> TorchResult<Tensor> {
            let whole = Tensor::f_empty(shape, (Kind::Float, own.device()))?;
            if let Some(part) = shares.own {
                part.of(&whole)?.f_copy_(own)?;
            }
            Ok(whole)
        };
        let whole = whole()?;
        let mut broadcasts = Broadcasts::new(self);
        broadcasts.begin(&whole, shares)?;
        broadcasts.finish_all()?;
        self.on_rank_0(&whole)
    }

    fn on_rank_0(&self, whole: &Tensor) -> Result<Vec<f32>> {
        Ok(if self.group.rank() == 0 { download(whole)? } else { Vec::new() })
    }
}

impl TchOps {
    /// Gives each rank the parts of the weights that the others have updated, on all ranks. `own` is how this
    /// rank's update ended; the others are told if it stopped in the middle, since they wait for its parts.
    ///
    /// # Errors
    /// That of `own`, or when the group fails.
    pub fn share_updates<T>(
        &self,
        parameters: &mut ParameterStore<Self>,
        own: Result<T>,
    ) -> Result<T> {
        let Some(division) = &self.division else { return own };
        let entries = parameters.entries_mut().iter_mut().map(|entry| &mut entry.value);
        let mut updated: Vec<&mut Parameter> =
            entries.filter(|parameter| parameter.is_updated()).collect();
        let own = own.inspect_err(|error| {
            // A gradient that is not finite is refused by all ranks before any update.
            if !updated.is_empty() {
                division.give_up(error);
            }
        })?;
        let mut broadcasts = Broadcasts::new(division);
        for parameter in &updated {
            broadcasts.begin(&parameter.replica()?, parameter.shares())?;
        }
        broadcasts.finish_all()?;
        for parameter in &mut updated {
            parameter.finish_sharing()?;
        }
        Ok(own)
    }

    /// Row-major f32 values of a weight on rank 0, of which each rank may hold a part; all ranks must ask.
    ///
    /// # Errors
    /// When the group fails or memory runs out.
    pub fn gather_values(&self, parameter: &Parameter) -> Result<Vec<f32>> {
        let shares = parameter.shares();
        match &self.division {
            Some(division) if shares.divide_values => {
                division.gather(&parameter.own_values()?, shares, [parameter.count() as i64])
            }
            Some(division) if division.group.rank() != 0 => Ok(Vec::new()),
            _ => Ok(parameter.values()?),
        }
    }

    /// The optimiser's whole state tensors of a weight on rank 0, as [`Self::gather_values`].
    ///
    /// # Errors
    /// As there.
    pub fn gather_state(&self, parameter: &Parameter) -> Result<Vec<Vec<f32>>> {
        let (shares, state) = (parameter.shares(), parameter.state().iter());
        match &self.division {
            Some(division) if shares.own.is_some() => state
                .map(|state| division.gather(state, shares, [parameter.count() as i64]))
                .collect(),
            Some(division) => state.map(|state| division.on_rank_0(state)).collect(),
            None => Ok(state.map(download).collect::<TorchResult<_>>()?),
        }
    }
}

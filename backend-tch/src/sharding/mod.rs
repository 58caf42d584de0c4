//! The training state of a policy, divided among the ranks of a group (ZeRO, arXiv 1910.02054).
//!
//! A matrix has one part per rank. Where ranks divide anything, each updates its own part of the weight, with
//! the optimiser's state of it, and then gives it to the others; vectors are updated by all. Ranks that divide
//! nothing go through the same parts in the same order, so that the sums of squares and the updates of both
//! are the same to the bit.

mod gradients;
mod parts;
mod updates;

use std::cell::RefCell;
use std::rc::Rc;

use sppo_model::ModelError;
use sppo_plugin::Sharding;
use tch::Kind;

use self::gradients::Reductions;
use crate::ops::TchOps;
use crate::process_group::ProcessGroup;

pub(crate) use parts::{Part, Shares};

/// A group of ranks, and what they divide among themselves.
pub(crate) struct Division {
    group: Rc<ProcessGroup>,
    sharding: Sharding,
    reductions: RefCell<Reductions>,
}

impl Division {
    /// The shares of a weight: a matrix that is trained is divided. Its f32 values are divided where nothing
    /// but their copies in the compute dtype is read by a pass, so not those of a table.
    fn shares(&self, shape: &[usize], is_table: bool, compute_dtype: Kind) -> Shares {
        let count = shape.iter().product::<usize>() as i64;
        let parts = self.group.size();
        if shape.len() != 2 {
            return Shares::whole(count);
        }
        let divides = self.sharding != Sharding::None;
        Shares {
            own: divides.then(|| Part::new(count, self.group.rank(), parts)),
            divide_values: divides && !is_table && compute_dtype != Kind::Float,
            divide_gradients: self.sharding == Sharding::Gradients,
            count,
            parts,
        }
    }
}

impl Division {
    /// Tells the other ranks of an error of this one, for which they would wait.
    fn give_up(&self, error: &ModelError) {
        if self.group.failure().is_none() {
            self.group.give_up(&error.to_string());
        }
    }
}

impl TchOps {
    /// The op set of a model whose training state the ranks of a group divide. All ranks must make it.
    #[must_use]
    pub fn divided(&self, group: Rc<ProcessGroup>, sharding: Sharding) -> Self {
        let division = Division { group, sharding, reductions: RefCell::default() };
        Self { division: Some(Rc::new(division)), ..self.clone() }
    }

    /// The shares of a new weight.
    pub(crate) fn shares(&self, shape: &[usize], trainable: bool, is_table: bool) -> Shares {
        match &self.division {
            Some(division) if trainable => {
                division.shares(shape, is_table, self.context.compute_dtype)
            }
            _ => Shares::whole(shape.iter().product::<usize>() as i64),
        }
    }
}

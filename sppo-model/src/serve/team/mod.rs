//! Models that several processes hold together, each a whole replica on a device of its own.
//!
//! Rank 0 is asked, the other ranks serve it. A call becomes a [`Command`](protocol::Command) to all ranks;
//! each does its part, and the outcomes come back to rank 0:
//!
//! ```text
//! rank 0   TeamPolicy -- ask --> broadcast(command)  perform  all_gather(outcome) --> results
//! others   Member::serve ......> broadcast           perform  all_gather(outcome), and wait again
//! ```
//!
//! Batch `i` of a call is computed by rank `i`, exactly as one process computes it, so results do not depend
//! on the number of ranks. Weights travel from rank 0; the other ranks need no model on disk.

mod collective;
mod controller;
mod member;
mod policy;
mod protocol;
mod scorer;
#[cfg(test)]
mod tests;
mod weights;

pub use collective::{Channel, Collective};
pub(super) use controller::Controller;
pub(super) use member::Member;
pub(super) use policy::TeamPolicy;
pub(super) use scorer::TeamScorer;

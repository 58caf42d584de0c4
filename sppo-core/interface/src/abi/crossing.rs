//! What it costs to cross the boundary: an object of this program behind its own ABI does what the
//! object does, and every call goes the way that a call into a library goes.

use super::export::{export_oracle, export_policy};
use super::import::{LoadedOracle, LoadedPolicy};
use crate::{Oracle, PluginError, Policy};

/// This oracle, reached through the ABI.
///
/// # Errors
/// None that an oracle of this program causes.
pub fn oracle_across(oracle: Box<dyn Oracle>) -> Result<Box<dyn Oracle>, PluginError> {
    let exported = abi_stable::std_types::RResult::ROk(export_oracle(oracle));
    Ok(Box::new(LoadedOracle::new("oracle", exported)?))
}

/// This policy, reached through the ABI.
///
/// # Errors
/// When it does not describe itself.
pub fn policy_across(policy: Box<dyn Policy>) -> Result<Box<dyn Policy>, PluginError> {
    Ok(Box::new(LoadedPolicy::new("backend", export_policy(policy))?))
}

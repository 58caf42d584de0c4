//! `sppo merge`: adapters and their model in, a whole checkpoint out; or a model for servers, with a head of its
//! own.

use sppo_core::Error;
use sppo_core::config::Config;
use sppo_model::checkpoint::{WeightFiles, write_checkpoint};

use crate::args::MergeArguments;
use crate::failure::Result;
use crate::models::LocalModel;
use crate::terminal::Terminal;

pub(super) fn merge(arguments: &MergeArguments, terminal: &Terminal) -> Result<()> {
    let (from, to) = (arguments.adapters.canonicalize(), arguments.output.canonicalize());
    if from.ok().is_some_and(|from| to.is_ok_and(|to| from == to)) {
        return Err(Error::configuration("--output", "is the directory of the adapters itself")
            .with_hint("choose another one: a directory holds either adapters or a whole model")
            .into());
    }
    let LocalModel { checkpoint, .. } = match arguments.adapters.to_str() {
        // A whole model may be named as everywhere.
        Some(name) if arguments.untied_head => {
            LocalModel::find(name, &Config::default(), false, terminal)?
        }
        _ => LocalModel::open(&arguments.adapters)?,
    };
    if checkpoint.adapters().is_none() && !arguments.untied_head {
        return Err(Error::input(&arguments.adapters, "holds no adapters to merge")
            .with_hint("name a directory with adapter_config.json, or give --untied-head")
            .into());
    }
    let names: Vec<String> = checkpoint.tensor_names().map(String::from).collect();
    let tensors = names.into_iter().map(|name| {
        let tensor = checkpoint.tensor(&name)?;
        Ok((name, tensor.shape, tensor.values))
    });
    write_checkpoint(
        &arguments.output,
        checkpoint.config(),
        checkpoint.text(),
        checkpoint.original_config(),
        tensors,
        WeightFiles::default(),
    )?;
    if arguments.untied_head {
        sppo_sampler_http::untie_head(&arguments.output).map_err(Error::from)?;
    }
    terminal.note(&format!("merged into {}", arguments.output.display()));
    Ok(())
}

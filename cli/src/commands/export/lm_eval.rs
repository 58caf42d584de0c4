//! `sppo export lm-eval`: the command line of lm-evaluation-harness for a checkpoint.

use std::path::Path;

use sppo_core::Error;
use sppo_core::config::Config;
use sppo_model::checkpoint::Checkpoint;

use super::names::name_of_model;
use crate::args::LmEvalArguments;
use crate::failure::Result;
use crate::models::LocalModel;
use crate::output;
use crate::terminal::Terminal;

pub(super) fn lm_eval(arguments: &LmEvalArguments, terminal: &Terminal) -> Result<()> {
    let model =
        LocalModel::find(&arguments.checkpoint, &Config::default(), arguments.offline, terminal)?;
    let checkpoint = &model.checkpoint;
    let number_format = if checkpoint.is_stored_in_bf16() { "bfloat16" } else { "float32" };
    let source = source(checkpoint, &model.path)?;
    let template = match checkpoint.text().has_template() {
        true => " --apply_chat_template --fewshot_as_multiturn",
        false => "",
    };
    let output = name_of_model(&arguments.checkpoint);
    output::line(&format!(
        "lm_eval --model hf --model_args {},dtype={number_format}{template} --tasks {} --batch_size auto --output_path \
         {} --log_samples",
        quoted(&source),
        quoted(&arguments.tasks),
        quoted(&format!("lm-eval/{output}"))
    ))
}

/// The part of `--model_args` that says where the model is.
fn source(checkpoint: &Checkpoint, path: &Path) -> Result<String> {
    let shown = |path: &Path| path.display().to_string();
    let base = checkpoint.path();
    if !base.is_dir() {
        return Err(Error::input(path, "is or has a GGUF file, which lm_eval reads badly")
            .with_hint("name a checkpoint in a directory; `sppo merge` makes one of adapters")
            .into());
    }
    let model = format!("pretrained={}", shown(base));
    let source = match checkpoint.adapters() {
        Some(_) => format!("{model},peft={}", shown(path)),
        None => model,
    };
    match source.matches(',').count() == usize::from(checkpoint.adapters().is_some()) {
        true => Ok(source),
        false => Err(Error::input(path, "has a comma in its path, which lm_eval cannot take")
            .with_hint("rename the directory")
            .into()),
    }
}

/// An argument as a shell takes it.
fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-=,:+@".contains(c);
    match argument.chars().all(is_plain) {
        true => argument.into(),
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    }
}

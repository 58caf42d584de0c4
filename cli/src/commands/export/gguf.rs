//! `sppo export gguf`: a checkpoint in, a GGUF file out.

use sppo_core::Error;
use sppo_core::config::Config;
use sppo_model::ModelError;
use sppo_model::checkpoint::{GgufExport, write_gguf};
use sppo_model::formats::GgufFormat;

use super::names::name_of_model;
use crate::args::{GgufArguments, GgufFormatChoice};
use crate::failure::{Failure, Result};
use crate::models::LocalModel;
use crate::output;
use crate::terminal::Terminal;

impl From<GgufFormatChoice> for GgufFormat {
    fn from(choice: GgufFormatChoice) -> Self {
        match choice {
            GgufFormatChoice::F32 => Self::F32,
            GgufFormatChoice::F16 => Self::F16,
            GgufFormatChoice::Bf16 => Self::Bf16,
            GgufFormatChoice::Q8_0 => Self::Q8_0,
            GgufFormatChoice::Q4_0 => Self::Q4_0,
            GgufFormatChoice::Q4_K => Self::Q4_K,
        }
    }
}

pub(super) fn gguf(arguments: &GgufArguments, terminal: &Terminal) -> Result<()> {
    let GgufArguments { checkpoint, base, .. } = arguments;
    let format = GgufFormat::from(arguments.format);
    let output = arguments.output.clone();
    let path =
        output.unwrap_or_else(|| format!("{}-{format}.gguf", name_of_model(checkpoint)).into());
    let model = LocalModel::find(checkpoint, &Config::default(), arguments.offline, terminal)?;
    let written = write_gguf(&model.checkpoint, &path, format, base.as_deref());
    let export = written.map_err(|error| match error {
        ModelError::Unsupported(message) => Failure::from(Error::input(&model.path, message)),
        other => other.into(),
    })?;
    describe(&export, terminal);
    output::line(&path.display().to_string())
}

fn describe(export: &GgufExport, terminal: &Terminal) {
    if let Some(context) = export.shortened_context {
        terminal.note(&format!(
            "llama.cpp computes this model without its attention windows; the context ends at {context} tokens, up \
             to which that makes no difference"
        ));
    }
    for (format, count) in &export.other_formats {
        terminal.note(&format!("{count} matrices are in {format}"));
    }
}

//! `sppo export`: a model for other programs.

mod answers;
mod benchmark;
mod gguf;
mod lm_eval;
mod markdown;
mod names;

use crate::args::{ExportArguments, ExportTarget};
use crate::failure::Result;
use crate::terminal::Terminal;
use answers::export_answers;
use benchmark::Benchmark;

pub(super) fn export(arguments: &ExportArguments, terminal: &Terminal) -> Result<()> {
    match &arguments.target {
        ExportTarget::Gguf(arguments) => gguf::gguf(arguments, terminal),
        ExportTarget::AlpacaEval(arguments) => {
            export_answers(Benchmark::AlpacaEval, arguments, terminal)
        }
        ExportTarget::ArenaHard(arguments) => {
            export_answers(Benchmark::ArenaHard, arguments, terminal)
        }
        ExportTarget::MtBench(arguments) => export_answers(Benchmark::MtBench, arguments, terminal),
        ExportTarget::LmEval(arguments) => lm_eval::lm_eval(arguments, terminal),
    }
}

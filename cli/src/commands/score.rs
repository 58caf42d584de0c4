//! `sppo score`: per-token log-probabilities of given responses.

use std::path::Path;

use sppo_core::config::Config;
use sppo_core::datasets::{ScoreContent, ScoreRequest, check_tokens, read_score_requests_named};
use sppo_core::plugin::{Codec, PluginError};
use sppo_core::stages::{self, TokenizationSettings, TokenizedResponse};
use sppo_core::tables;

use super::session::Setup;
use crate::args::ScoreArguments;
use crate::failure::Result;
use crate::output::{self, RowsTo};
use crate::prompts;
use crate::settings::Flags;
use crate::terminal::Terminal;

pub(super) fn score(arguments: &ScoreArguments, terminal: &Terminal) -> Result<()> {
    let flags = Flags::of(&[&arguments.settings, &arguments.model, &arguments.backend])?;
    let setup = Setup::new(arguments.settings.resolve(flags)?.config, terminal)?;
    let names = &setup.config.prompts.columns;
    let requests = read_score_requests_named(&arguments.responses, names)?;
    let scores_to = RowsTo::new(arguments.output.as_deref())?;
    output::require_distinct(
        &[("--output", arguments.output.as_deref())],
        &[("RESPONSES", Some(&arguments.responses))],
    )?;

    let model = setup.find_model(arguments.model.offline)?;
    if requests.iter().any(|request| matches!(request.content, ScoreContent::Text { .. })) {
        model.require_template()?;
    }
    let mut policy = setup.load(model)?;
    let tokenized = tokenize(&setup.config, policy.as_ref(), requests, &arguments.responses)?;
    let scored = setup.session().score(policy.as_mut(), &tokenized)?;
    tables::write(scores_to.path(), &scored)?;
    scores_to.finish(scored.len(), arguments.report)
}

fn tokenize(
    config: &Config,
    codec: &dyn Codec,
    requests: Vec<ScoreRequest>,
    file: &Path,
) -> Result<Vec<TokenizedResponse>> {
    let info = codec.info();
    // A score is that of the whole response; one that does not fit is refused below.
    let settings = TokenizationSettings {
        max_length: usize::MAX,
        ..config.training.tokenization_settings(info.context_length)
    };
    requests
        .into_iter()
        .map(|ScoreRequest { content, row }| {
            let located = |error| prompts::locate(file, row as u64, error);
            let split = match content {
                ScoreContent::Text { messages, response } => {
                    stages::tokenize_responses(codec, &messages, &[&response], settings)
                        .map_err(located)?
                        .pop()
                        .ok_or_else(|| located(PluginError::input("has no tokens").into()))?
                }
                ScoreContent::Tokens { prompt, response } => TokenizedResponse { prompt, response },
            };
            check_tokens(&split, info).map_err(located)?;
            Ok(split)
        })
        .collect()
}

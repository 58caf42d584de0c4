//! The sections of a card below its metadata, in Markdown.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use super::ModelCard;
use crate::observer::IterationReport;
use crate::run_directory::PluginIdentity;

const PAPER: &str = "https://arxiv.org/abs/2405.00675";

/// The settings that a card shows: those that decide about the result, and none that tells where the run was.
const SETTINGS: [&str; 22] = [
    "iterations",
    "seed",
    "prompts.per_iteration",
    "sampling.samples_per_prompt",
    "sampling.temperature",
    "sampling.top_p",
    "sampling.top_k",
    "sampling.min_p",
    "sampling.max_new_tokens",
    "preference.estimator",
    "selection.strategy",
    "training.objective",
    "training.eta",
    "training.epochs",
    "training.global_batch_size",
    "training.optimizer",
    "training.learning_rate",
    "training.schedule",
    "training.warmup_ratio",
    "training.max_gradient_norm",
    "training.tokenization",
    "training.max_length",
];

/// Further settings of a run that trains adapters.
const ADAPTER_SETTINGS: [&str; 5] = [
    "training.lora.rank",
    "training.lora.alpha",
    "training.lora.dropout",
    "training.lora.target_modules",
    "training.lora.rank_stabilized",
];

/// The title, and the origin of the model in a sentence.
pub(super) fn introduction(card: &ModelCard<'_>) -> String {
    let config = &card.identity.config;
    let kind = if card.has_adapters() { "LoRA adapters for" } else { "A fine-tuned version of" };
    let of = match config.iterations > 1 {
        true => format!("iteration {} of {}", card.iteration, config.iterations),
        false => "one iteration".into(),
    };
    format!(
        "# {}\n\n{kind} {}, trained by [Self-Play Preference Optimization]({PAPER}) (SPPO, arXiv:2405.00675): {of}, \
         judged by the oracle {}.\n",
        config.name,
        base(card),
        plugin(card, "oracle", &config.oracle.name),
    )
}

/// The base model with a link where the hub has it; a path by its last part alone.
fn base(card: &ModelCard<'_>) -> String {
    if let Some(id) = card.base_model() {
        return format!("[{id}](https://huggingface.co/{id})");
    }
    let name = Path::new(&card.identity.model.name).file_name().unwrap_or_default();
    format!("a local model, `{}`", name.to_string_lossy())
}

/// A plugin of the run with its version.
fn plugin(card: &ModelCard<'_>, kind: &str, name: &str) -> String {
    let is_it = |plugin: &&PluginIdentity| plugin.kind == kind && plugin.name == name;
    match card.identity.plugins.iter().find(is_it) {
        Some(plugin) => format!("`{name}` {}", plugin.version),
        None => format!("`{name}`"),
    }
}

/// Code that loads the model and asks it something.
pub(super) fn quick_start(card: &ModelCard<'_>) -> String {
    let name = card.publication.repository.as_deref().unwrap_or("path/to/this/directory");
    let load = match card.has_adapters() {
        true => format!(
            "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer, pipeline\n\n\
             model = AutoPeftModelForCausalLM.from_pretrained(\"{name}\")\n\
             tokenizer = AutoTokenizer.from_pretrained(\"{name}\")\n\
             generator = pipeline(\"text-generation\", model=model, tokenizer=tokenizer)\n"
        ),
        false => format!(
            "from transformers import pipeline\n\ngenerator = pipeline(\"text-generation\", model=\"{name}\")\n"
        ),
    };
    format!(
        "## Quick start\n\n```python\n{load}\
         question = [{{\"role\": \"user\", \"content\": \"Why is the sky blue?\"}}]\n\
         print(generator(question, max_new_tokens=256, return_full_text=False)[0][\"generated_text\"])\n```\n"
    )
}

/// Win rates with their intervals, iteration by iteration.
pub(super) fn results(card: &ModelCard<'_>) -> String {
    let confidence = 100.0 * card.identity.config.evaluation.confidence;
    let mut text = format!(
        "## Results\n\nAgainst the starting model on held-out prompts, judged by the same oracle in both orders; \
         intervals of {confidence} % by bootstrap over prompts. Changes are of the summed log-probability of the \
         responses that were trained on.\n\n\
         | iteration | win rate | interval | tokens per response | chosen | rejected | prompts trained on |\n\
         |---|---|---|---|---|---|---|\n"
    );
    for report in card.reports {
        let _ = writeln!(text, "{}", row(report));
    }
    if card.reports.iter().all(|report| report.iteration != card.iteration) {
        text.push_str(
            "\nThis checkpoint was written before its own iteration was measured; `sppo push` completes the table.\n",
        );
    }
    if let Some(picture) = &card.publication.picture {
        let _ = writeln!(text, "\n![Win rate against the starting model by iteration]({picture})");
    }
    if let Some(page) = &card.publication.report_page {
        let _ = writeln!(text, "\nThe whole report, with answers side by side: [{page}]({page}).");
    }
    text
}

fn row(report: &IterationReport) -> String {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let signed = |change: Option<f64>| or_dash(change.map(|change| format!("{change:+.2}")));
    let (iteration, examples) = match report.iteration {
        0 => ("start".into(), "-".into()),
        number => (number.to_string(), report.examples.to_string()),
    };
    format!(
        "| {iteration} | {} | {} | {} | {} | {} | {examples} |",
        or_dash(report.win_rate.map(|rate| percent(rate.mean))),
        or_dash(report.win_rate.map(|rate| format!(
            "{} to {}",
            percent(rate.low),
            percent(rate.high)
        ))),
        or_dash(report.mean_response_tokens.map(|tokens| format!("{tokens:.0}"))),
        signed(report.chosen_log_prob_change),
        signed(report.rejected_log_prob_change),
    )
}

/// Settings, hashes and versions.
pub(super) fn training(card: &ModelCard<'_>) -> String {
    let identity = card.identity;
    let mut text = format!(
        "## Training\n\nMade by sppo {} with the backend {}.\n\n| setting | value |\n|---|---|\n",
        env!("CARGO_PKG_VERSION"),
        plugin(card, "backend", &identity.config.backend.name),
    );
    let of_adapters: &[&str] = if card.has_adapters() { &ADAPTER_SETTINGS } else { &[] };
    // A configuration that was read has a JSON form.
    let settings = identity.config.to_value().unwrap_or_default();
    for key in SETTINGS.iter().chain(of_adapters) {
        if let Some(value) = settings.pointer(&format!("/{}", key.replace('.', "/"))) {
            let _ = writeln!(text, "| `{key}` | {} |", shown(value));
        }
    }
    let hashes = [
        ("weights of the starting model", &identity.model.sha256),
        ("prompts", &identity.prompts_sha256),
    ];
    text.push('\n');
    for (of, sha256) in hashes.iter().filter(|(_, sha256)| !sha256.is_empty()) {
        let _ = writeln!(text, "- SHA-256 of the {of}: `{sha256}`");
    }
    text
}

/// A value as people write it: texts bare, tables as `name=value`.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| format!("{name}={}", shown(value));
            fields.iter().map(field).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

/// The paper.
pub(super) fn citation() -> String {
    "## Citation\n\n\
     ```bibtex\n\
     @article{wu2024self,\n  \
       title   = {Self-Play Preference Optimization for Language Model Alignment},\n  \
       author  = {Wu, Yue and Sun, Zhiqing and Yuan, Huizhuo and Ji, Kaixuan and Yang, Yiming and Gu, Quanquan},\n  \
       journal = {arXiv preprint arXiv:2405.00675},\n  \
       year    = {2024}\n\
     }\n\
     ```\n"
        .into()
}

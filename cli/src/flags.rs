//! Flags that stand for settings: one line for each. Type, choices, range and help come from the JSON
//! Schema of the setting.

use std::marker::PhantomData;
use std::sync::LazyLock;

use clap::builder::{PossibleValue, PossibleValuesParser, ValueParser};
use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches, value_parser};
use serde_json::Value;
use sppo_core::config::Config;
use sppo_core::schema::Schema;
use toml::Value as Setting;

/// A flag, the dotted key that it sets, and which help shows it.
pub(crate) struct Flag(pub(crate) &'static str, pub(crate) &'static str, Help);

/// The shortest help that shows a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Help {
    /// `-h`.
    Short,
    /// `--help`.
    Long,
}
use Help::{Long, Short};

/// Flags under one heading of the help.
pub(crate) trait FlagGroup: Clone + 'static {
    /// The heading, if it is not that of the other options.
    const HEADING: Option<&'static str>;
    /// The flags, in the order of the help. One that replaces others, such as the type of the optimiser,
    /// comes before them.
    const FLAGS: &'static [Flag];
}

macro_rules! flag_groups {
    ($($(#[$doc:meta])* $group:ident, $heading:expr => [$($flag:expr),* $(,)?];)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug)]
            pub(crate) struct $group;

            impl FlagGroup for $group {
                const HEADING: Option<&'static str> = $heading;
                const FLAGS: &'static [Flag] = &[$($flag),*];
            }
        )*

        /// All flags, for tests.
        #[cfg(test)]
        pub(crate) fn all() -> impl Iterator<Item = &'static Flag> {
            [$($group::FLAGS),*].into_iter().flatten()
        }
    };
}

flag_groups! {
    /// The flag of the seed.
    Seed, None => [
        Flag("--seed", "seed", Short),
    ];
    /// Flags of the length of a run.
    Run, None => [
        Flag("--iterations", "iterations", Short),
    ];
    /// Flags of the starting model.
    Model, Some("Model") => [
        Flag("--model", "model", Short),
        Flag("--revision", "revision", Short),
    ];
    /// The flag of the backend.
    Backend, Some("Plugins") => [
        Flag("--backend", "backend.name", Short),
    ];
    /// The flag of the oracle.
    Oracle, Some("Plugins") => [
        Flag("--oracle", "oracle.name", Short),
    ];
    /// The flag of the sampler.
    Sampler, Some("Plugins") => [
        Flag("--sampler", "sampler.name", Short),
    ];
    /// Flags of sampling.
    Sampling, Some("Sampling") => [
        Flag("--samples", "sampling.samples_per_prompt", Short),
        Flag("--temperature", "sampling.temperature", Short),
        Flag("--top-p", "sampling.top_p", Short),
        Flag("--top-k", "sampling.top_k", Short),
        Flag("--min-p", "sampling.min_p", Short),
        Flag("--max-new-tokens", "sampling.max_new_tokens", Short),
        Flag("--min-new-tokens", "sampling.min_new_tokens", Short),
    ];
    /// Flags of training.
    Training, Some("Training") => [
        Flag("--objective", "training.objective", Short),
        Flag("--eta", "training.eta", Short),
        Flag("--learning-rate", "training.learning_rate", Short),
        Flag("--label-smoothing", "training.label_smoothing", Long),
        Flag("--epochs", "training.epochs", Short),
        Flag("--planned-epochs", "training.planned_epochs", Long),
        Flag("--global-batch-size", "training.global_batch_size", Short),
        Flag("--micro-batch-tokens", "training.micro_batch_tokens", Long),
        Flag("--sharding", "training.sharding", Long),
        Flag("--schedule", "training.schedule", Short),
        Flag("--warmup-ratio", "training.warmup_ratio", Short),
        Flag("--max-gradient-norm", "training.max_gradient_norm", Long),
        Flag("--tokenization", "training.tokenization", Long),
        Flag("--max-length", "training.max_length", Long),
        Flag("--max-prompt-length", "training.max_prompt_length", Long),
        Flag("--reference-log-probs", "training.reference_log_probs", Long),
    ];
    /// Flags of the optimiser.
    Optimizer, Some("Optimiser") => [
        Flag("--optimizer", "training.optimizer.type", Short),
        Flag("--alpha", "training.optimizer.alpha", Long),
        Flag("--epsilon", "training.optimizer.epsilon", Long),
        Flag("--beta1", "training.optimizer.beta1", Long),
        Flag("--beta2", "training.optimizer.beta2", Long),
        Flag("--weight-decay", "training.optimizer.weight_decay", Long),
        Flag("--momentum", "training.optimizer.momentum", Long),
    ];
    /// Flags of low-rank adapters.
    Lora, Some("Low-rank adapters (LoRA)") => [
        Flag("--lora-rank", "training.lora.rank", Short),
        Flag("--lora-alpha", "training.lora.alpha", Long),
        Flag("--lora-dropout", "training.lora.dropout", Long),
        Flag("--lora-target-modules", "training.lora.target_modules", Long),
        Flag("--frozen-weights", "training.frozen_weights", Long),
    ];
}

/// The settings that were given by a group of flags.
#[derive(Clone, Debug)]
pub(crate) struct GivenFlags<G> {
    given: Vec<(&'static str, &'static str, Setting)>,
    group: PhantomData<G>,
}

impl<G> Default for GivenFlags<G> {
    fn default() -> Self {
        Self { given: Vec::new(), group: PhantomData }
    }
}

impl<G> GivenFlags<G> {
    /// Flag, dotted key and value of each.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(&'static str, &'static str, Setting)> {
        self.given.iter()
    }
}

impl<G: FlagGroup> Args for GivenFlags<G> {
    fn augment_args(command: Command) -> Command {
        command.args(G::FLAGS.iter().map(|flag| flag.argument(G::HEADING)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<G: FlagGroup> FromArgMatches for GivenFlags<G> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = |flag: &Flag| Some((flag.0, flag.1, flag.kind().value(matches, flag.id())?));
        Ok(Self { given: G::FLAGS.iter().filter_map(given).collect(), group: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

static DOCUMENT: LazyLock<Value> = LazyLock::new(Config::json_schema);

impl Flag {
    fn id(&self) -> &'static str {
        self.0.trim_start_matches('-')
    }

    /// The setting in every form of its table that has it, each with the form.
    fn schemas(&self) -> Vec<(Schema<'static>, Schema<'static>)> {
        let (table, name) = self.1.rsplit_once('.').unwrap_or(("", self.1));
        let forms = Schema::new(&DOCUMENT).at(table).map(Schema::forms).unwrap_or_default();
        forms.into_iter().filter_map(|form| Some((form, form.property(name)?))).collect()
    }

    fn kind(&self) -> Kind {
        let schemas = self.schemas();
        let choices: Vec<PossibleValue> = schemas.iter().flat_map(possible_values).collect();
        if !choices.is_empty() {
            return Kind::Choice(choices);
        }
        let Some((_, schema)) = schemas.first() else { return Kind::Text };
        match schema.resolved().types().first() {
            Some(&"integer") => {
                let least = schema.keyword("minimum").and_then(Value::as_i64);
                Kind::Integer { least: least.unwrap_or(i64::MIN) }
            }
            Some(&"number") => Kind::Number,
            Some(&"array") => Kind::List,
            _ => Kind::Text,
        }
    }

    fn argument(&self, heading: Option<&'static str>) -> Arg {
        let kind = self.kind();
        let documentation = self.documentation();
        let argument = Arg::new(self.id())
            .long(self.id())
            .value_name(kind.value_name(self.id()))
            .value_parser(kind.parser())
            .help_heading(heading)
            .hide_short_help(self.2 == Long)
            // A negative number is a value, if a wrong one, and no flag.
            .allow_hyphen_values(matches!(kind, Kind::Integer { .. } | Kind::Number))
            .help(first_sentence(&documentation) + &self.default())
            .long_help(documentation + &self.default());
        if kind == Kind::List { argument.value_delimiter(',') } else { argument }
    }

    /// The description of the setting, with the forms of its section that have it; for the `type` of a
    /// section, the description of the section.
    fn documentation(&self) -> String {
        if let Some(section) = self.1.strip_suffix(".type") {
            let section = Schema::new(&DOCUMENT).at(section);
            return section
                .and_then(|schema| schema.text("description"))
                .map(on_one_line)
                .unwrap_or_default();
        }
        let schemas = self.schemas();
        let described = |(_, schema): &(Schema<'static>, Schema<'static>)| {
            schema.text("description").or_else(|| schema.resolved().text("description"))
        };
        let text = schemas.iter().find_map(described).map(on_one_line).unwrap_or_default();
        let forms: Vec<&str> = schemas.iter().filter_map(|(form, _)| type_of(*form)).collect();
        match forms.is_empty() {
            true => text,
            false => format!("{text}, for {}", forms.join(" and ")),
        }
    }

    /// The default of a name. Presets have their own of the numbers.
    fn default(&self) -> String {
        let schemas = self.schemas();
        let mut defaults = schemas.iter().filter_map(|(_, schema)| schema.text("default"));
        match (self.kind(), defaults.next()) {
            (Kind::Text, Some(default)) => format!(" [default: {default}]"),
            _ => String::new(),
        }
    }
}

/// The `type` of a form of a table that is told apart by it.
fn type_of(form: Schema<'static>) -> Option<&'static str> {
    form.property("type")?.text("const")
}

fn on_one_line(text: &str) -> String {
    text.replace('\n', " ").trim_end_matches('.').into()
}

fn first_sentence(text: &str) -> String {
    text.split(". ").next().unwrap_or_default().into()
}

/// A `type` is documented where its form is.
fn possible_values(
    (form, schema): &(Schema<'static>, Schema<'static>),
) -> impl Iterator<Item = PossibleValue> + use<> {
    let of_form = form.text("description");
    schema.choices().into_iter().filter_map(move |choice| {
        let value = PossibleValue::new(choice.value.as_str()?);
        Some(match choice.description.or(of_form) {
            Some(description) => value.help(first_sentence(&on_one_line(description))),
            None => value,
        })
    })
}

/// Values that a flag takes.
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Choice(Vec<PossibleValue>),
    Integer { least: i64 },
    Number,
    List,
    Text,
}

impl Kind {
    fn value_name(&self, flag: &str) -> String {
        match self {
            Self::Choice(_) => "NAME".into(),
            Self::Integer { .. } => "N".into(),
            Self::Number => "NUMBER".into(),
            Self::List => "NAMES".into(),
            Self::Text => flag.to_uppercase(),
        }
    }

    fn parser(&self) -> ValueParser {
        match self {
            Self::Choice(values) => PossibleValuesParser::new(values.clone()).into(),
            Self::Integer { least } => value_parser!(i64).range(*least..).into(),
            Self::Number => value_parser!(f64).into(),
            Self::List | Self::Text => ValueParser::string(),
        }
    }

    fn value(&self, matches: &ArgMatches, id: &str) -> Option<Setting> {
        match self {
            Self::Integer { .. } => matches.get_one::<i64>(id).copied().map(Setting::from),
            Self::Number => matches.get_one::<f64>(id).copied().map(Setting::from),
            Self::Choice(_) | Self::Text => {
                matches.get_one::<String>(id).cloned().map(Setting::from)
            }
            Self::List => {
                let items: Vec<String> = matches.get_many(id)?.cloned().collect();
                Some(items.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_stands_for_a_documented_setting() {
        for flag in all() {
            assert!(
                Schema::new(&DOCUMENT).at(flag.1).is_some(),
                "{}: no setting {}",
                flag.0,
                flag.1
            );
            assert!(!flag.schemas().is_empty(), "{}: no setting {}", flag.0, flag.1);
            assert!(!flag.documentation().is_empty(), "{} has no help", flag.0);
        }
    }

    #[test]
    fn kinds_and_help_come_from_the_schema() {
        let flag = |name| all().find(|flag| flag.0 == name).unwrap();
        let names = |name| match flag(name).kind() {
            Kind::Choice(values) => {
                values.iter().map(|value| value.get_name().to_owned()).collect::<Vec<_>>()
            }
            kind => panic!("{kind:?}"),
        };
        assert_eq!(names("--schedule"), ["linear", "cosine", "constant"]);
        assert_eq!(names("--optimizer"), ["rmsprop", "adamw", "sgd"]);
        assert_eq!(flag("--epochs").kind(), Kind::Integer { least: 0 });
        assert_eq!(flag("--eta").kind(), Kind::Number);
        assert_eq!(flag("--lora-target-modules").kind(), Kind::List);
        assert_eq!(flag("--model").kind(), Kind::Text);
        assert!(flag("--epsilon").documentation().ends_with(", for rmsprop and adamw"));
        assert_eq!(flag("--backend").default(), " [default: candle]");
    }
}

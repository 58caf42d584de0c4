//! Candidates to rank: `{"prompt"|"messages", "candidates": [text, ...]}`, and the same rows ranked,
//! with `probability` (K x K), where the oracle scores `rm_scores`, and who judged as `oracle`.

use std::collections::BTreeMap;
use std::path::Path;

use arrow_schema::Schema;

use super::columns::{ColumnNames, Columns};
use super::text::not_empty;
use crate::error::Result;
use crate::plugin::Conversation;
use crate::records::Rollout;
use crate::stages::JudgedComparison;
use crate::tables::{self, Place, Row, has_json_form};
use crate::win_rate::VerdictKind;

/// A prompt and its candidate answers.
#[derive(Clone, Debug, PartialEq)]
pub struct CandidateSet {
    /// The conversation, ending with the user's turn.
    pub messages: Conversation,
    /// The answers, at least two.
    pub candidates: Vec<String>,
    /// The row as it stands in the file, unknown columns included.
    row: Row,
}

/// A set with an oracle's preferences among its candidates.
#[derive(Clone, Debug, PartialEq)]
pub struct RankedCandidates {
    /// The set.
    pub set: CandidateSet,
    /// The preferences.
    pub judged: JudgedComparison,
}

impl CandidateSet {
    /// A set that does not come from a file.
    #[must_use]
    pub fn new(messages: Conversation, candidates: Vec<String>) -> Self {
        let mut row = Row::default();
        match messages.as_slice() {
            [only] if only.role == "user" => row.set("prompt", &only.content),
            _ => row.set("messages", &messages),
        }
        row.set("candidates", &candidates);
        Self { messages, candidates, row }
    }

    /// A prompt's sampled answers, as text.
    #[must_use]
    pub fn from_rollout(rollout: &Rollout) -> Self {
        let texts = rollout.responses.iter().map(|response| response.text.clone()).collect();
        Self::new(rollout.prompt.messages.clone(), texts)
    }

    fn from_row(row: Row, names: &ColumnNames, place: &Place) -> Result<Self> {
        let columns = Columns { row: &row, names, place };
        let Some(candidates) = columns.candidates()? else {
            return Err(columns.missing("candidates"));
        };
        let messages = columns.answerable(columns.conversation()?)?;
        if candidates.len() < 2 {
            let count = candidates.len();
            return Err(place
                .error(format!("`candidates` holds {count} of them, which cannot be compared"))
                .with_hint("give at least two candidates per row"));
        }
        Ok(Self { messages, candidates, row })
    }
}

/// Reads candidates. Columns that are not known here are kept for [`write_ranked`].
///
/// # Errors
/// When the file cannot be read, is empty, or a row has fewer than two candidates; the error names the
/// line.
pub fn read_candidates(path: &Path) -> Result<Vec<CandidateSet>> {
    read_candidates_named(path, &ColumnNames::default())
}

/// As [`read_candidates`], from columns of these names.
///
/// # Errors
/// As [`read_candidates`].
pub fn read_candidates_named(path: &Path, names: &ColumnNames) -> Result<Vec<CandidateSet>> {
    let mut not_finite: BTreeMap<String, usize> = BTreeMap::new();
    let sets = tables::read_rows(
        path,
        |schema| columns_with_json_form(path, schema),
        |row, place| {
            for column in row.not_finite() {
                *not_finite.entry(column.clone()).or_default() += 1;
            }
            CandidateSet::from_row(row, names, place)
        },
    )?;
    for (column, rows) in not_finite {
        tracing::warn!(
            "{}: column `{column}` holds NaN or infinities in {rows} rows, for which JSON has no number: \
             they become null",
            path.display()
        );
    }
    not_empty(sets, path)
}

/// The columns that can be kept; the others are named.
fn columns_with_json_form(path: &Path, schema: &Schema) -> Vec<usize> {
    let fields = schema.fields().iter().enumerate();
    let (plain, others): (Vec<_>, Vec<_>) =
        fields.partition(|(_, field)| has_json_form(field.data_type()));
    for (_, field) in others {
        tracing::warn!("{}: column `{}` is left out", path.display(), field.name());
    }
    plain.into_iter().map(|(position, _)| position).collect()
}

/// Writes candidates, each row with the columns that it was read with.
///
/// # Errors
/// When the file cannot be written.
pub fn write_candidates(path: &Path, sets: &[CandidateSet]) -> Result<()> {
    tables::write_rows(path, sets.iter().map(|set| set.row.clone()))
}

/// Writes each row as it was read, then `probability`, `rm_scores` where the oracle
/// scores, and the judge's name as `oracle`; where the oracle told of the orders of presentation, `read_first`,
/// where not all pairs were asked about, `asked_pairs`, and where the settings changed the oracle's probabilities,
/// these as `oracle_probability`. Those of an earlier judge are replaced.
///
/// # Errors
/// When the file cannot be written.
pub fn write_ranked(path: &Path, ranked: &[RankedCandidates], oracle: &str) -> Result<()> {
    let row = |RankedCandidates { set, judged }: &RankedCandidates| {
        let JudgedComparison { preferences, asked_pairs, oracle_matrix } = judged;
        let mut row = set.row.clone();
        row.set("probability", &preferences.matrix);
        match preferences.kind {
            VerdictKind::Probabilities => row.remove("rm_scores"),
            _ => row.set("rm_scores", &preferences.scores),
        }
        row.set("oracle", &oracle);
        match &preferences.orders {
            Some(orders) => row.set("read_first", orders),
            None => row.remove("read_first"),
        }
        match asked_pairs {
            Some(pairs) => row.set("asked_pairs", pairs),
            None => row.remove("asked_pairs"),
        }
        match oracle_matrix {
            Some(matrix) => row.set("oracle_probability", matrix),
            None => row.remove("oracle_probability"),
        }
        row
    };
    tables::write_rows(path, ranked.iter().map(row))
}

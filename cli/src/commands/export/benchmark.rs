//! The formats of benchmarks: questions as they publish them, and answers as their judging reads them.

use std::path::Path;

use serde_json::{Map, Value, json};
use sppo_core::{Error, Result};

use super::markdown;

/// A benchmark that a judge decides by answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Benchmark {
    /// AlpacaEval 2: a list of instructions.
    AlpacaEval,
    /// Arena-Hard-Auto 2.0: lines with `prompt`.
    ArenaHard,
    /// MT-Bench: lines with two `turns`.
    MtBench,
}

/// A question.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Question {
    /// All that the file says of it.
    row: Map<String, Value>,
    /// The turns of the user, one after the other.
    pub(super) turns: Vec<String>,
    /// The temperature of its answers, where the benchmark fixes it.
    pub(super) temperature: Option<f64>,
}

/// An answer to a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Its text, without thoughts.
    pub(super) text: String,
    /// Its length in the model's own tokens, thoughts included.
    pub(super) tokens: usize,
}

impl Benchmark {
    /// The end of the name of a file of answers.
    pub(super) fn extension(self) -> &'static str {
        match self {
            Self::AlpacaEval => "json",
            Self::ArenaHard | Self::MtBench => "jsonl",
        }
    }

    /// The keys that every question has.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::AlpacaEval => &["instruction"],
            Self::ArenaHard => &["uid", "prompt"],
            Self::MtBench => &["question_id", "category", "turns"],
        }
    }

    /// Reads a file of questions: a list of objects, or one object a line.
    ///
    /// # Errors
    /// When it cannot be read, is not of this format or holds no question.
    pub(super) fn read(self, path: &Path) -> Result<Vec<Question>> {
        let bytes = std::fs::read(path).map_err(|error| Error::input(path, error.to_string()))?;
        let rows =
            rows(&bytes).map_err(|error| Error::input(path, format!("is not JSON: {error}")))?;
        if rows.is_empty() {
            return Err(Error::input(path, "holds no question"));
        }
        let numbered = rows.into_iter().enumerate();
        numbered.map(|(index, row)| self.question(path, index + 1, row)).collect()
    }

    fn question(self, path: &Path, number: usize, row: Value) -> Result<Question> {
        let keys = self.keys();
        let wrong = || {
            let message = format!("question {number} is no object with `{}`", keys.join("`, `"));
            Error::input(path, message)
                .with_hint("name the file of questions that the benchmark publishes")
        };
        let Value::Object(row) = row else { return Err(wrong()) };
        if keys.iter().any(|key| !row.contains_key(*key)) {
            return Err(wrong());
        }
        let text = |value: &Value| value.as_str().map(String::from);
        let turns = match self {
            Self::AlpacaEval => text(&row["instruction"]).map(|turn| vec![turn]),
            Self::ArenaHard => text(&row["prompt"]).map(|turn| vec![turn]),
            Self::MtBench => {
                row["turns"].as_array().and_then(|turns| turns.iter().map(text).collect())
            }
        };
        let turns: Vec<String> =
            turns.filter(|turns: &Vec<_>| !turns.is_empty()).ok_or_else(wrong)?;
        let temperature = (self == Self::MtBench).then(|| mt_bench_temperature(&row));
        Ok(Question { row, turns, temperature })
    }

    /// The file of answers; `time` is in seconds since 1970.
    pub(super) fn file(
        self,
        name: &str,
        questions: &[Question],
        answers: &[Vec<Answer>],
        time: f64,
    ) -> String {
        let rows = questions.iter().zip(answers);
        let rows: Vec<Value> =
            rows.map(|(question, answers)| self.row(name, question, answers, time)).collect();
        match self {
            Self::AlpacaEval => format!("{:#}\n", Value::Array(rows)),
            Self::ArenaHard | Self::MtBench => rows.iter().map(|row| format!("{row}\n")).collect(),
        }
    }

    fn row(self, name: &str, question: &Question, answers: &[Answer], time: f64) -> Value {
        let of_question = |key: &str| question.row.get(key).cloned().unwrap_or_default();
        let first = answers.first();
        let text = first.map_or("", |answer| &answer.text);
        match self {
            Self::AlpacaEval => {
                let mut row = json!({
                    "instruction": of_question("instruction"), "output": text, "generator": name,
                });
                for key in ["dataset", "datasplit"] {
                    if let Some(value) = question.row.get(key) {
                        row[key] = value.clone();
                    }
                }
                row
            }
            Self::ArenaHard => json!({
                "uid": of_question("uid"),
                "ans_id": format!("{name}-{}", plain(&of_question("uid"))),
                "model": name,
                "messages": [
                    {"role": "user", "content": of_question("prompt")},
                    {"role": "assistant", "content": {"answer": text}},
                ],
                "tstamp": time,
                "metadata": markdown::metadata(text, first.map_or(0, |answer| answer.tokens)),
            }),
            Self::MtBench => {
                let turns: Vec<&str> = answers.iter().map(|answer| &*answer.text).collect();
                json!({
                    "question_id": of_question("question_id"),
                    "answer_id": format!("{name}-{}", plain(&of_question("question_id"))),
                    "model_id": name,
                    "choices": [{"index": 0, "turns": turns}],
                    "tstamp": time,
                })
            }
        }
    }
}

/// A text without its quotation marks, or another value as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// The rows of a JSON list, or of JSON lines.
fn rows(bytes: &[u8]) -> serde_json::Result<Vec<Value>> {
    let documents = serde_json::Deserializer::from_slice(bytes).into_iter();
    let documents = documents.collect::<serde_json::Result<Vec<Value>>>()?;
    Ok(documents
        .into_iter()
        .flat_map(|document| match document {
            Value::Array(rows) => rows,
            row => vec![row],
        })
        .collect())
}

/// The temperature that FastChat draws answers with, by the category of a question.
fn mt_bench_temperature(row: &Map<String, Value>) -> f64 {
    if let Some(required) = row.get("required_temperature").and_then(Value::as_f64) {
        return required;
    }
    match row["category"].as_str().unwrap_or_default() {
        "extraction" | "math" | "coding" | "reasoning" => 0.0,
        "stem" | "humanities" => 0.1,
        _ => 0.7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn questions(benchmark: Benchmark, text: &str) -> Result<Vec<Question>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("questions");
        std::fs::write(&path, text).unwrap();
        benchmark.read(&path)
    }

    #[test]
    fn answers_have_the_form_that_the_benchmarks_read() {
        let answer = |text: &str| Answer { text: text.into(), tokens: 7 };
        let alpaca =
            r#"[{"instruction": "Say \"hi\".", "dataset": "helpful_base", "output": "no"}]"#;
        let read = questions(Benchmark::AlpacaEval, alpaca).unwrap();
        let file = Benchmark::AlpacaEval.file("mine", &read, &[vec![answer("hi")]], 1.5);
        let expected = json!([{
            "instruction": "Say \"hi\".", "output": "hi", "generator": "mine", "dataset": "helpful_base",
        }]);
        assert_eq!(serde_json::from_str::<Value>(&file).unwrap(), expected);

        let arena = r#"{"uid": "a1", "category": "hard_prompt", "prompt": "Why?"}"#;
        let read = questions(Benchmark::ArenaHard, arena).unwrap();
        let file = Benchmark::ArenaHard.file("mine", &read, &[vec![answer("# So\n- **a**")]], 1.5);
        let row: Value = serde_json::from_str(&file).unwrap();
        assert_eq!(row["messages"][1]["content"]["answer"], "# So\n- **a**");
        assert_eq!((&row["uid"], &row["ans_id"]), (&json!("a1"), &json!("mine-a1")));
        assert_eq!(row["metadata"]["token_len"], 7);
        assert_eq!(row["metadata"]["header_count"]["h1"], 1);

        let bench = "{\"question_id\": 81, \"category\": \"writing\", \"turns\": [\"a\", \"b\"]}\n\
                     {\"question_id\": 111, \"category\": \"math\", \"turns\": [\"c\", \"d\"]}\n";
        let read = questions(Benchmark::MtBench, bench).unwrap();
        assert_eq!(
            read.iter().map(|question| question.temperature).collect::<Vec<_>>(),
            [Some(0.7), Some(0.0)]
        );
        let answers = [vec![answer("1"), answer("2")], vec![answer("3"), answer("4")]];
        let file = Benchmark::MtBench.file("mine", &read, &answers, 1.5);
        let last: Value = serde_json::from_str(file.lines().last().unwrap()).unwrap();
        let expected = json!({
            "question_id": 111, "answer_id": "mine-111", "model_id": "mine", "tstamp": 1.5,
            "choices": [{"index": 0, "turns": ["3", "4"]}],
        });
        assert_eq!(last, expected);
    }

    #[test]
    fn questions_of_another_benchmark_are_refused() {
        for (benchmark, text) in [
            (Benchmark::AlpacaEval, r#"[{"prompt": "Why?"}]"#),
            (Benchmark::ArenaHard, r#"{"uid": "a", "prompt": 3}"#),
            (Benchmark::MtBench, r#"{"question_id": 1, "category": "math", "turns": []}"#),
        ] {
            let error = questions(benchmark, text).unwrap_err().to_string();
            assert!(error.contains("question 1 is no object with"), "{error}");
        }
    }
}

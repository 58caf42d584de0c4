//! Checkpoints in other programs, from Python: transformers loads them, and llama.cpp loads what is exported for it,
//! and both agree about log-probabilities.

mod support;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{
    Running, fixture, free_port, json_lines, numbers, read_json, reference_sequences,
    require_success, small_run, small_run_of, sppo, stdout_of,
};

/// What the script exits with where transformers cannot be used.
const SKIPPED: i32 = 77;

/// `SPPO_PYTHON` names an interpreter that has torch and transformers.
fn python() -> Command {
    Command::new(std::env::var("SPPO_PYTHON").unwrap_or_else(|_| "python3".into()))
}

#[test]
fn transformers_agrees_about_twenty_sampled_responses() {
    let directory = tempfile::tempdir().unwrap();
    require_success(&small_run(directory.path(), "run").output().unwrap());
    let checkpoint = directory.path().join("run/iteration-2/checkpoint");

    let rollouts = directory.path().join("rollouts.jsonl");
    stdout_of(
        sppo()
            .arg("generate")
            .arg(fixture("fixtures/prompts-small.jsonl"))
            .arg("--model")
            .arg(&checkpoint)
            .args(["--samples", "3", "--max-new-tokens", "24", "--output"])
            .arg(directory.path().join("candidates.jsonl"))
            .arg("--rollouts")
            .arg(&rollouts),
    );
    let mut scored = String::new();
    for rollout in std::fs::read_to_string(&rollouts).unwrap().lines() {
        let rollout: serde_json::Value = serde_json::from_str(rollout).unwrap();
        for response in rollout["responses"].as_array().unwrap() {
            let line = serde_json::json!({
                "prompt_tokens": rollout["prompt_tokens"],
                "tokens": response["tokens"],
                "log_probs": response["log_probs"],
            });
            scored.push_str(&line.to_string());
            scored.push('\n');
        }
    }
    assert!(scored.lines().count() >= 20);
    let scores = directory.path().join("scores.jsonl");
    std::fs::write(&scores, scored).unwrap();

    check(python().arg(fixture("python/check_checkpoint.py")).arg(&checkpoint).arg(&scores));
}

/// Runs a check, and says where it is skipped.
fn check(script: &mut Command) {
    match script.output() {
        Ok(output) if output.status.code() == Some(SKIPPED) => {
            let why = String::from_utf8_lossy(&output.stdout);
            eprintln!("{}; name another Python with SPPO_PYTHON", why.trim());
        }
        Ok(output) => {
            eprint!("{}", String::from_utf8_lossy(&output.stdout));
            require_success(&output);
        }
        Err(error) => eprintln!("skipped: no Python ({error}); name one with SPPO_PYTHON"),
    }
}

/// Families with a tiny model.
const FAMILIES: [&str; 11] = [
    "llama",
    "mistral",
    "gemma2",
    "gemma3_text",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "olmo2",
    "olmo3",
    "phi3",
];

/// A copy of a model in f32 with queries and keys half as large. The biases of the tiny Qwen 2 make scores of attention
/// at which f32 itself is off by 2e-5 per token, PEFT's as well.
fn with_smaller_scores(model: &Path, copy: &Path) -> PathBuf {
    std::fs::create_dir(copy).unwrap();
    for entry in std::fs::read_dir(model).unwrap().flatten() {
        std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    let weights = copy.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let (length, rest) = bytes.split_first_chunk_mut::<8>().unwrap();
    let (header, data) = rest.split_at_mut(u64::from_le_bytes(*length) as usize);
    let header: Value = serde_json::from_slice(header).unwrap();
    for (name, tensor) in header.as_object().unwrap() {
        if ["q_proj", "k_proj"].iter().any(|part| name.contains(part)) {
            assert_eq!(tensor["dtype"], "F32");
            let place = numbers(&tensor["data_offsets"]);
            let place = place[0] as usize..place[1] as usize;
            for number in data[place].as_chunks_mut::<4>().0 {
                *number = (f32::from_le_bytes(*number) / 2.0).to_le_bytes();
            }
        }
    }
    std::fs::write(weights, bytes).unwrap();
    copy.to_path_buf()
}

#[test]
fn what_is_trained_of_every_family_is_read_by_transformers_and_peft() {
    let mut import = python();
    let can_check = import.args(["-c", "import torch, transformers, peft"]).output();
    if !can_check.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: name a Python that has torch, transformers and peft with SPPO_PYTHON");
        return;
    }
    for family in FAMILIES {
        for (script, settings) in [
            ("python/check_checkpoint.py", &[][..]),
            ("python/check_adapters.py", &["--lora-rank", "4", "--learning-rate", "2e-4"]),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let in_directory = |name: &str| directory.path().join(name);
            let mut model = fixture("fixtures/lm").join(family);
            if family == "qwen2" && !settings.is_empty() {
                model = with_smaller_scores(&model, &in_directory("model"));
            }
            let mut run = small_run_of(&model, directory.path(), "run");
            require_success(&run.args(settings).output().unwrap());
            let [sequences, scores] = ["sequences.jsonl", "scores.jsonl"].map(in_directory);
            let reference = reference_sequences(&read_json(&model.join("golden.json")));
            std::fs::write(&sequences, reference).unwrap();
            let checkpoint = in_directory("run/iteration-2/checkpoint");
            scored(&checkpoint, &sequences, &scores);
            eprint!("{family}: ");
            let mut python = python();
            python.arg(fixture(script)).args([&checkpoint, &scores]);
            if !settings.is_empty() {
                python.arg(in_directory("saved-by-peft"));
            }
            check(&mut python);
        }
    }
}

/// A tiny model with the settings changed that no GGUF file can have: windows that llama.cpp computes without, and
/// a scale of attention that it takes from the size of a head.
fn exportable(family: &str, directory: &Path) -> PathBuf {
    let model = directory.join(family);
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(fixture("fixtures/lm").join(family)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    let mut config = read_json(&model.join("config.json"));
    match family {
        "mistral" | "phi3" => config["sliding_window"] = Value::Null,
        "gemma2" | "gemma3_text" => config["query_pre_attn_scalar"] = config["head_dim"].clone(),
        _ => {}
    }
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    model
}

fn export(model: &Path, kind: &str, file: &Path) {
    let mut command = sppo();
    command.args(["export", "gguf"]).arg(model).args(["--type", kind, "--output"]).arg(file);
    assert_eq!(stdout_of(&mut command).trim(), file.display().to_string());
}

/// Twenty sequences: those of the reference, and others of random tokens.
fn twenty_sequences(model: &Path) -> String {
    let mut lines = reference_sequences(&read_json(&model.join("golden.json")));
    let mut state = 20_261_130_u64;
    while lines.lines().count() < 20 {
        let length = 4 + 3 * lines.lines().count();
        let mut token = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state >> 33 & 511
        };
        let tokens: Vec<u64> = (0..length).map(|_| token()).collect();
        let line = json!({ "prompt_tokens": tokens[..1], "response_tokens": tokens[1..] });
        writeln!(lines, "{line}").unwrap();
    }
    lines
}

fn scores(model: &Path, sequences: &Path) -> Vec<Value> {
    json_lines(&stdout_of(sppo().arg("score").arg(sequences).arg("--model").arg(model)))
}

fn largest_difference(one: &[Value], other: &[Value]) -> f64 {
    let log_probs = |rows: &[Value]| -> Vec<f64> {
        rows.iter().flat_map(|row| numbers(&row["log_probs"])).collect()
    };
    let (one, other) = (log_probs(one), log_probs(other));
    assert_eq!(one.len(), other.len());
    one.iter().zip(&other).map(|(one, other)| (one - other).abs()).fold(0.0, f64::max)
}

/// Scores of a GGUF file with their prompts, in the form of the script that asks llama.cpp.
fn scored(file: &Path, sequences: &Path, to: &Path) {
    let prompts = json_lines(&std::fs::read_to_string(sequences).unwrap());
    let mut lines = String::new();
    for (mut row, prompt) in scores(file, sequences).into_iter().zip(prompts) {
        row["prompt_tokens"] = prompt["prompt_tokens"].clone();
        writeln!(lines, "{row}").unwrap();
    }
    std::fs::write(to, lines).unwrap();
}

/// Greedy continuations by a GGUF file.
fn continuations(file: &Path, to: &Path) {
    let mut generate = sppo();
    generate.arg("generate").arg(fixture("fixtures/prompts-small.jsonl")).arg("--model").arg(file);
    generate.args(["--samples", "1", "--temperature", "0", "--max-new-tokens", "24", "--output"]);
    generate.arg(to.with_file_name("candidates.jsonl")).arg("--rollouts").arg(to);
    stdout_of(&mut generate);
}

/// A family's tiny model in files of f32 and of f16, which give the log-probabilities of the model again.
fn exported(family: &str, directory: &Path) -> [PathBuf; 2] {
    let model = exportable(family, directory);
    let sequences = directory.join(SEQUENCES);
    std::fs::write(&sequences, twenty_sequences(&model)).unwrap();
    let original = scores(&model, &sequences);
    [("f32", 1e-5), ("f16", 5e-2)].map(|(kind, tolerance)| {
        let file = directory.join(format!("{kind}.gguf"));
        export(&model, kind, &file);
        let difference = largest_difference(&original, &scores(&file, &sequences));
        assert!(difference < tolerance, "{family} in {kind}: {difference}");
        file
    })
}

/// The sequences of a model, beside its files.
const SEQUENCES: &str = "sequences.jsonl";

/// Has llama.cpp compute what we compute of a file, from that file or from another with the same values.
fn check_in_llama_cpp(mut python: Command, file: &Path, computed: &Path, tolerance: &str) {
    let [of_file, rollouts] =
        ["scores.jsonl", "rollouts.jsonl"].map(|name| file.with_file_name(name));
    scored(file, &file.with_file_name(SEQUENCES), &of_file);
    continuations(file, &rollouts);
    python.arg(fixture("python/check_gguf.py")).args([computed, &of_file, &rollouts]);
    check(python.arg(tolerance).arg(file));
}

#[test]
fn an_exported_model_of_every_family_is_read_back_and_computed_alike_by_llama_cpp() {
    for family in FAMILIES {
        let directory = tempfile::tempdir().unwrap();
        let [full, half] = exported(family, directory.path());
        // With weights in f16, llama.cpp rounds what they are multiplied with to f16 too. So it computes the
        // values of that file, stored in f32, and by these it agrees about the file.
        let widened = directory.path().join("widened.gguf");
        export(&half, "f32", &widened);
        // llama.cpp takes GELU from a table in half precision
        let tolerance = if family.starts_with("gemma") { "1e-2" } else { "1e-3" };
        for (file, computed) in [(&full, &full), (&half, &widened)] {
            eprint!("{family}, {}: ", file.file_name().unwrap().display());
            check_in_llama_cpp(python(), file, computed, tolerance);
        }
    }
}

/// With `SPPO_LLAMA_CPP_IN_F32` naming the Python that `tests/python/make_llama_cpp_in_f32.sh` makes.
#[test]
fn a_llama_cpp_without_half_precision_computes_f16_files_alike() {
    let Some(python) = std::env::var_os("SPPO_LLAMA_CPP_IN_F32") else {
        eprintln!("skipped: name a Python with a llama.cpp in f32 with SPPO_LLAMA_CPP_IN_F32");
        return;
    };
    for family in FAMILIES {
        let directory = tempfile::tempdir().unwrap();
        for file in exported(family, directory.path()) {
            eprint!("{family}, {}: ", file.file_name().unwrap().display());
            check_in_llama_cpp(Command::new(&python), &file, &file, "1e-4");
        }
    }
}

/// A tiny model that answers with `A` or `B`: their rows of the head are moved towards the embedding of the token
/// before the answer.
fn model_with_likely_labels(directory: &Path) -> PathBuf {
    let model = exportable("llama", directory);
    let file = model.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let place = |tensor: &str, row: usize| {
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensor = tensors.tensor(tensor).unwrap();
        let width = size_of::<f32>() * tensor.shape()[1];
        let start = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize + row * width;
        start..start + width
    };
    let values = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
    };
    // The tokens "\n\n", "A" and "B".
    let last = place("model.embed_tokens.weight", 298);
    let labels = [32, 33].map(|label| place("lm_head.weight", label));
    let last = values(&bytes[last]);
    let length = last.iter().map(|value| value * value).sum::<f32>().sqrt();
    for label in labels {
        let moved = values(&bytes[label.clone()]);
        let moved = moved.iter().zip(&last).map(|(own, last)| own + 2.0 * last / length);
        let moved: Vec<u8> = moved.flat_map(f32::to_le_bytes).collect();
        bytes[label].copy_from_slice(&moved);
    }
    std::fs::write(file, bytes).unwrap();
    model
}

/// Pairs of responses to each prompt, in both orders: 42 questions.
fn comparisons_for_judges() -> String {
    let subjects = ["rain", "a red door", "nine birds", "the sea", "bread", "a slow train", "iron"];
    let line = |subject: &&str| {
        let candidates = [
            format!("It is {subject}."),
            format!("No one knows what {subject} is, or was."),
            format!("Ask again about {subject} in the morning, and bring a friend."),
        ];
        json!({ "prompt": format!("What is {subject}?"), "candidates": candidates }).to_string()
            + "\n"
    };
    subjects.iter().map(line).collect()
}

/// The oracle's probabilities by the order of presentation, row by row.
fn read_first(candidates: &Path, oracle: &str, settings: &[String]) -> Vec<f64> {
    let mut command = sppo();
    command.arg("rank").arg(candidates).args(["--oracle", oracle]);
    for setting in settings {
        command.args(["--set", &format!("oracle.{oracle}.{setting}")]);
    }
    let ranked = json_lines(&stdout_of(&mut command));
    let rows = ranked.iter().flat_map(|line| line["read_first"].as_array().unwrap().clone());
    rows.flat_map(|row| row.as_array().unwrap().clone()).filter_map(|one| one.as_f64()).collect()
}

/// The oracle `judge` beside `openai-judge`, which asks the same model behind llama.cpp's server.
#[test]
fn judge_says_what_openai_judge_says_of_the_same_model_behind_a_server() {
    let can_serve = python().args(["-c", "import llama_cpp.server.app"]).output();
    if !can_serve.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "skipped: no llama-cpp-python[server]; name a Python that has it with SPPO_PYTHON"
        );
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("judge.gguf");
    export(&model_with_likely_labels(directory.path()), "f32", &file);
    let port = free_port();
    let mut serve = python();
    serve.args(["-m", "llama_cpp.server", "--host", "127.0.0.1", "--port", &port.to_string()]);
    // ggml's number of f32 is 0: by default the cache of keys and values is in f16.
    serve.args(["--n_ctx", "256", "--type_k", "0", "--type_v", "0", "--flash_attn", "false"]);
    serve.args(["--logits_all", "true", "--n_threads", "1"]).arg("--model").arg(&file);
    let mut server = Running(serve.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    server.wait_for_port(port);

    let candidates = directory.path().join("candidates.jsonl");
    std::fs::write(&candidates, comparisons_for_judges()).unwrap();
    let question = fixture("fixtures/judge/question.jinja");
    let template = std::fs::read_to_string(&question).unwrap();
    let own = [
        format!("model='{}'", file.display()),
        format!("template_file='{}'", question.display()),
        "answer_prefix=''".into(),
        "system=''".into(),
        "min_label_probability=0".into(),
    ];
    let served = [
        "protocol='openai-judge'".into(),
        format!("endpoints=['http://127.0.0.1:{port}/v1']"),
        "model='judge'".into(),
        "cache.enabled=false".into(),
        format!("judge.template={}", json!(template)),
        "judge.system=''".into(),
        "judge.min_label_probability=0".into(),
        "judge.max_tokens=1".into(),
        // All spellings of the labels are among the 512 tokens, and not always among the 20 likeliest.
        "judge.top_log_probs=512".into(),
    ];
    let own = read_first(&candidates, "judge", &own);
    let served = read_first(&candidates, "http", &served);
    assert_eq!((own.len(), served.len()), (42, 42));
    let differences = own.iter().zip(&served).map(|(own, served)| (own - served).abs());
    let largest = differences.fold(0.0, f64::max);
    eprintln!("42 questions, largest difference {largest:.2e}");
    assert!(largest < 1e-3, "{own:?}\n{served:?}");
    // The judge has a mind of its own.
    assert!(own.iter().any(|one| (one - own[0]).abs() > 0.01), "{own:?}");
}

#[test]
fn alpaca_eval_reads_and_judges_exported_answers() {
    let directory = tempfile::tempdir().unwrap();
    let questions = directory.path().join("questions.json");
    let rows: Vec<Value> = ["Name a colour.", "Why?", "Say \"yes\".\nThen stop \u{e9}."]
        .map(|instruction| json!({ "instruction": instruction, "dataset": "helpful_base" }))
        .into();
    std::fs::write(&questions, json!(rows).to_string()).unwrap();
    let answers = |name: &str, longest: &str| {
        let output = directory.path().join(format!("{name}.json"));
        let mut export = sppo();
        export.args(["export", "alpaca-eval"]).arg(fixture("fixtures/lm/llama"));
        export.arg("--questions").arg(&questions).args(["--max-new-tokens", longest]);
        stdout_of(export.args(["--name", name, "--output"]).arg(&output));
        output
    };
    let (long, short) = (answers("long", "24"), answers("short", "4"));
    check(python().arg(fixture("python/check_alpaca_eval.py")).arg(long).arg(short));
}

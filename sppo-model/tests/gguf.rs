//! GGUF files as they are met: split, of any number format, and with metadata that are missing or say
//! something else; and as they are written.

mod support;

use std::path::{Path, PathBuf};

use sppo_model::checkpoint::{Checkpoint, GgufExport, write_gguf};
use sppo_model::decoder::RotaryScaling;
use sppo_model::formats::{GgufFile, GgufFormat, WeightFile};
use support::{
    GgufBuilder, copy_of, fixture, gguf_of_fixture, open_gguf, read_json, refusal, tensors,
    write_json,
};

/// Alters a file before it is written.
type AnyChange<'a> = &'a dyn Fn(&mut GgufBuilder);
type BoxedChange = Box<dyn Fn(&mut GgufBuilder)>;

/// Whether a tensor of the fixture goes into the second part.
type InSecond = fn(&str) -> bool;

/// The parts of a file as `llama-gguf-split` writes them: the first has all metadata.
fn split(whole: &GgufBuilder, in_second: InSecond) -> [GgufBuilder; 2] {
    let count = whole.tensors.len() as u32;
    [0, 1].map(|number| {
        let mut part = GgufBuilder::default();
        if number == 0 {
            part.entries = whole.entries.clone();
        }
        part.raw("split.no", 2, &(number as u16).to_le_bytes())
            .raw("split.count", 2, &2_u16.to_le_bytes())
            .raw("split.tensors.count", 5, &count.to_le_bytes());
        let of_part = |name: &str| in_second(name) == (number == 1);
        part.tensors =
            whole.tensors.iter().filter(|tensor| of_part(&tensor.name)).cloned().collect();
        part
    })
}

fn write_parts(directory: &Path, parts: &[GgufBuilder]) -> Vec<PathBuf> {
    let name = |number: usize| format!("model-{:05}-of-{:05}.gguf", number + 1, parts.len());
    let write = |(number, part): (usize, &GgufBuilder)| {
        let path = directory.join(name(number));
        fs_err::write(&path, part.build()).unwrap();
        path
    };
    parts.iter().enumerate().map(write).collect()
}

#[test]
fn a_split_model_is_read_from_all_its_parts() {
    let whole = gguf_of_fixture("llama");
    let expected = open_gguf(&whole.build()).1.unwrap();
    let cases: [InSecond; 3] =
        [|name| name == "output.weight", |name| name.starts_with("blk.1."), |_| false];
    for in_second in cases {
        let directory = tempfile::tempdir().unwrap();
        let paths = write_parts(directory.path(), &split(&whole, in_second));
        let found = Checkpoint::open(&paths[0]).unwrap();
        assert_eq!(found.config(), expected.config());
        assert_eq!(tensors(&found), tensors(&expected));
        let before = found.identity().unwrap().sha256;
        let mut bytes = fs_err::read(&paths[1]).unwrap();
        bytes.extend([0; 32]);
        fs_err::write(&paths[1], bytes).unwrap();
        assert_ne!(Checkpoint::open(&paths[0]).unwrap().identity().unwrap().sha256, before);
    }
    let mut single = whole.clone();
    single.raw("split.no", 2, &[0, 0]).raw("split.count", 2, &[1, 0]);
    assert_eq!(tensors(&open_gguf(&single.build()).1.unwrap()), tensors(&expected));
}

#[test]
fn a_part_is_not_taken_for_the_whole() {
    let whole = gguf_of_fixture("llama");
    let parts = split(&whole, |name| name == "output.weight");
    type Damage = fn(&mut [GgufBuilder; 2]);
    let cases: [(Damage, &str); 7] = [
        (|[_, second]| second.tensors.clear(), "hold 29 tensors, and the model has 30"),
        (
            |[first, second]| second.tensors.push(first.tensors[0].clone()),
            "holds tensor `token_embd.weight`, which",
        ),
        (|[_, second]| set(second, "split.no", 0), "is not part 2 of 2 by its metadata"),
        (|[_, second]| set(second, "split.count", 3), "is not part 2 of 2 by its metadata"),
        (|[_, second]| second.entries.clear(), "is not part 2 of 2 by its metadata"),
        (|[first, _]| set(first, "split.no", 7), "cannot be part 8 of 2"),
        (
            |[first, _]| first.entries.retain(|(key, _)| key != "split.no"),
            "metadata key `split.no` is missing",
        ),
    ];
    for (damage, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        let mut parts = parts.clone();
        damage(&mut parts);
        let error = refusal(&write_parts(directory.path(), &parts)[0]);
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let directory = tempfile::tempdir().unwrap();
    let paths = write_parts(directory.path(), &parts);
    let error = refusal(&paths[1]);
    assert!(error.contains("is part 2 of 2 of a model [name the first part: "), "{error}");
    let renamed = directory.path().join("renamed.gguf");
    fs_err::copy(&paths[0], &renamed).unwrap();
    let error = refusal(&renamed);
    assert!(error.contains("does not end in `-00001-of-00002.gguf`"), "{error}");
    fs_err::remove_file(&paths[1]).unwrap();
    let error = refusal(&paths[0]);
    assert!(error.contains("model-00002-of-00002.gguf is missing"), "{error}");
    assert!(error.contains("llama-gguf-split --merge"), "{error}");
}

fn set(file: &mut GgufBuilder, key: &str, value: u16) {
    file.entries.retain(|(other, _)| other != key);
    file.raw(key, 2, &value.to_le_bytes());
}

#[test]
fn rope_scaling_is_what_llama_cpp_makes_of_it() {
    let scaling = |set: AnyChange<'_>| {
        let mut file = gguf_of_fixture("llama");
        set(&mut file);
        open_gguf(&file.build()).1.map(|model| model.config().rotary[0].clone().unwrap().scaling)
    };
    let kind = "llama.rope.scaling.type";
    let factor = "llama.rope.scaling.factor";
    let unscaled = RotaryScaling::Unscaled;
    let by_four = RotaryScaling::Linear { factor: 4.0 };
    assert_eq!(scaling(&|f| _ = f.text(kind, "none").number(factor, 4.0)).unwrap(), unscaled);
    assert_eq!(scaling(&|f| _ = f.text(kind, "none")).unwrap(), unscaled);
    assert_eq!(scaling(&|f| _ = f.text(kind, "linear")).unwrap(), unscaled);
    assert_eq!(scaling(&|f| _ = f.text(kind, "linear").number(factor, 0.0)).unwrap(), unscaled);
    assert_eq!(scaling(&|f| _ = f.text(kind, "linear").number(factor, 4.0)).unwrap(), by_four);
    assert_eq!(scaling(&|f| _ = f.number(factor, 4.0)).unwrap(), by_four);
    assert_eq!(scaling(&|f| _ = f.number("llama.rope.scale_linear", 4.0)).unwrap(), by_four);
    let refused: [(AnyChange<'_>, &str); 5] = [
        (&|f| _ = f.text(kind, "yarn").number(factor, 4.0), "original_context_length"),
        (&|f| _ = f.text(kind, "longrope"), "rope scaling `longrope`"),
        (&|f| _ = f.number(factor, -2.0), "rope scaling `linear` by -2"),
        (&|f| _ = f.integer(kind, 0), "`llama.rope.scaling.type` is an integer, not text"),
        (&|f| _ = f.number("llama.rope.scaling.attn_factor", 1.5), "attn_factor` = 1.5"),
    ];
    for (set, expected) in refused {
        let error = scaling(set).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn tokenizer_metadata_that_are_missing_or_wrong_are_refused_by_name() {
    type Change = fn(&mut GgufBuilder);
    let gone = |key: &'static str| {
        move |file: &mut GgufBuilder| file.entries.retain(|(other, _)| other != key)
    };
    let cases: Vec<(&str, BoxedChange, &str)> = vec![
        ("llama", Box::new(gone("tokenizer.ggml.model")), "`tokenizer.ggml.model` is missing"),
        ("llama", Box::new(gone("tokenizer.ggml.tokens")), "`tokenizer.ggml.tokens` is missing"),
        ("llama", Box::new(gone("tokenizer.ggml.pre")), "`tokenizer.ggml.pre` is missing"),
        ("qwen2", Box::new(gone("tokenizer.ggml.pre")), "[convert the model again"),
        ("llama", Box::new(gone("tokenizer.ggml.merges")), "`tokenizer.ggml.merges` is missing"),
        (
            "llama",
            Box::new(gone("tokenizer.ggml.token_type")),
            "`tokenizer.ggml.token_type` is missing",
        ),
        (
            "llama",
            Box::new(gone("tokenizer.ggml.bos_token_id")),
            "`tokenizer.ggml.bos_token_id` is missing",
        ),
        (
            "llama",
            Box::new(gone("tokenizer.ggml.eos_token_id")),
            "`tokenizer.ggml.eos_token_id` is missing",
        ),
        ("gemma2", Box::new(gone("tokenizer.ggml.scores")), "`tokenizer.ggml.scores` is missing"),
        (
            "gemma2",
            Box::new(gone("tokenizer.ggml.token_type")),
            "`tokenizer.ggml.token_type` is missing",
        ),
        (
            "gemma2",
            Box::new(gone("tokenizer.ggml.eos_token_id")),
            "`tokenizer.ggml.eos_token_id` is missing",
        ),
    ];
    let wrong: [(&str, Change, &str); 16] = [
        ("llama", |f| replace(f).text("tokenizer.ggml.pre", ""), "`tokenizer.ggml.pre` is missing"),
        (
            "llama",
            |f| replace(f).integer("tokenizer.ggml.pre", 3),
            "`tokenizer.ggml.pre` is an integer, not text",
        ),
        (
            "llama",
            |f| replace(f).text("tokenizer.ggml.tokens", "a"),
            "`tokenizer.ggml.tokens` is text, not an array",
        ),
        ("llama", |f| replace(f).integers("tokenizer.ggml.merges", &[1]), "not an array of texts"),
        (
            "llama",
            |f| replace(f).integers("tokenizer.ggml.token_type", &[1; 511]),
            "has 511 entries for the 512 tokens",
        ),
        (
            "llama",
            |f| replace(f).integers("tokenizer.ggml.token_type", &[9; 512]),
            "which is no kind of token",
        ),
        (
            "llama",
            |f| replace(f).numbers("tokenizer.ggml.token_type", &[1.0; 512]),
            "which is no kind of token",
        ),
        (
            "llama",
            |f| replace(f).text("tokenizer.ggml.token_type", "1"),
            "is not an array of integers",
        ),
        (
            "llama",
            |f| replace(f).text("tokenizer.ggml.bos_token_id", "507"),
            "is text, not a non-negative integer",
        ),
        (
            "llama",
            |f| replace(f).integer("tokenizer.ggml.eos_token_id", 512),
            "is not a token of the vocabulary",
        ),
        (
            "llama",
            |f| replace(f).integer("tokenizer.ggml.add_bos_token", 1),
            "is an integer, not a truth value",
        ),
        ("gemma2", |f| replace(f).numbers("tokenizer.ggml.scores", &[0.5; 512]), "are all alike"),
        (
            "gemma2",
            |f| replace(f).numbers("tokenizer.ggml.scores", &[f32::NAN; 512]),
            "a score that is no number",
        ),
        (
            "gemma2",
            |f| replace(f).numbers("tokenizer.ggml.scores", &[1.0; 3]),
            "has 3 entries for the 512 tokens",
        ),
        (
            "gemma2",
            |f| replace(f).text("tokenizer.ggml.add_space_prefix", "no"),
            "is text, not a truth value",
        ),
        (
            "qwen2",
            |f| replace(f).raw("tokenizer.ggml.add_bos_token", 7, &[1]),
            "`tokenizer.ggml.add_bos_token` is true, but `tokenizer.ggml.bos_token_id` is missing",
        ),
    ];
    let wrong = wrong
        .into_iter()
        .map(|(family, change, expected)| (family, Box::new(change) as BoxedChange, expected));
    for (family, change, expected) in cases.into_iter().chain(wrong) {
        let mut file = gguf_of_fixture(family);
        change(&mut file);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        fs_err::write(&path, file.build()).unwrap();
        let error = refusal(&path);
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_control_token_that_the_template_writes_is_one_token() {
    let template =
        "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}";
    let with_kind = |kind: i32| {
        let mut file = gguf_of_fixture("qwen2");
        let directory = support::fixture("qwen2");
        let tokenizer = support::read_json(&directory.join("tokenizer.json"));
        let mut kinds = vec![1; 512];
        for token in tokenizer["added_tokens"].as_array().unwrap() {
            kinds[token["id"].as_u64().unwrap() as usize] = kind;
        }
        replace(&mut file).integers("tokenizer.ggml.token_type", &kinds);
        file.text("tokenizer.chat_template", template);
        open_gguf(&file.build()).1
    };
    for kind in [3, 4] {
        let model = with_kind(kind).unwrap();
        assert_eq!(model.text().encode("<|im_start|>", false).unwrap().len(), 1);
    }
    for kind in [1, 0, 5] {
        let error = with_kind(kind).unwrap_err().to_string();
        assert!(error.contains("the chat template writes the token `<|im_start|>`"), "{error}");
    }
}

#[test]
fn a_file_that_is_no_model_says_so() {
    for kind in ["adapter", "mmproj", "imatrix"] {
        let mut file = gguf_of_fixture("llama");
        file.text("general.type", kind);
        let error = open_gguf(&file.build()).1.unwrap_err().to_string();
        assert!(
            error.contains(&format!("holds no model: its `general.type` is `{kind}`")),
            "{error}"
        );
    }
    let mut file = gguf_of_fixture("llama");
    file.text("general.type", "model");
    assert!(open_gguf(&file.build()).1.is_ok());
}

/// Setters that take an earlier value of the key away.
struct Replace<'a>(&'a mut GgufBuilder);

fn replace(file: &mut GgufBuilder) -> Replace<'_> {
    Replace(file)
}

impl Replace<'_> {
    fn without(self, key: &str) -> Self {
        self.0.entries.retain(|(other, _)| other != key);
        self
    }

    fn text(self, key: &str, value: &str) {
        self.without(key).0.text(key, value);
    }

    fn integer(self, key: &str, value: u32) {
        self.without(key).0.integer(key, value);
    }

    fn integers(self, key: &str, values: &[i32]) {
        self.without(key).0.integers(key, values);
    }

    fn numbers(self, key: &str, values: &[f32]) {
        self.without(key).0.numbers(key, values);
    }

    fn raw(self, key: &str, kind: u32, value: &[u8]) {
        self.without(key).0.raw(key, kind, value);
    }
}

/// Writes the fixture, with its `config.json` changed, as a GGUF file.
fn export(
    family: &str,
    change: impl Fn(&mut serde_json::Value),
) -> (tempfile::TempDir, Checkpoint, sppo_model::Result<GgufExport>) {
    let directory = copy_of(family);
    let mut config = read_json(&directory.path().join("config.json"));
    change(&mut config);
    write_json(&directory.path().join("config.json"), &config);
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let exported = write_gguf(&checkpoint, &directory.path().join("e.gguf"), GgufFormat::F32, None);
    (directory, checkpoint, exported)
}

#[test]
fn an_exported_file_is_read_as_the_same_model() {
    for family in ["llama", "qwen2", "qwen3", "qwen3_moe", "smollm3", "olmo2", "olmo3"] {
        let (directory, checkpoint, exported) = export(family, |_| ());
        assert_eq!(exported.unwrap(), GgufExport::default(), "{family}");
        let read = Checkpoint::open(&directory.path().join("e.gguf")).unwrap();
        assert_eq!(tensors(&read), tensors(&checkpoint), "{family}");
        let stops =
            |checkpoint: &Checkpoint| checkpoint.text().special_tokens().stop_tokens.clone();
        assert_eq!(stops(&read), stops(&checkpoint), "{family}");
    }
}

/// Rows in another order (llama, smollm3), several weights in one tensor (phi3) and experts (qwen3_moe).
#[test]
fn matrices_in_blocks_hold_the_values_that_are_read_from_them() {
    for family in ["llama", "smollm3", "phi3", "qwen3_moe"] {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(&fixture(family)).unwrap();
        assert!(checkpoint.quantized_bytes().is_err(), "{family}");
        let file = directory.path().join("q8_0.gguf");
        write_gguf(&checkpoint, &file, GgufFormat::Q8_0, None).unwrap();
        let read = Checkpoint::open(&file).unwrap();
        let sizes = read.quantized_bytes().unwrap();
        let mut found = 0;
        for (name, expected) in tensors(&read) {
            let Some(matrix) = read.quantized_base_matrix(&name).unwrap() else { continue };
            assert_eq!(matrix.values(), expected.values, "{family}: {name}");
            assert_eq!(matrix.dimensions(), *expected.shape, "{family}: {name}");
            assert_eq!(sizes[&name], expected.values.len() as u64 / 32 * 34, "{family}: {name}");
            found += 1;
        }
        assert!(found > 10 && found == sizes.len(), "{family}: {found}");
    }
}

#[test]
fn a_context_ends_where_windows_that_llama_cpp_lacks_begin_to_count() {
    for family in ["mistral", "phi3"] {
        let (directory, _, exported) = export(family, |_| ());
        assert_eq!(exported.unwrap().shortened_context, Some(8), "{family}");
        let read = Checkpoint::open(&directory.path().join("e.gguf")).unwrap();
        assert_eq!(read.config().context_length, 8, "{family}");
    }
}

#[test]
fn divisors_of_rotary_frequencies_are_tensors() {
    let long_rope = |config: &mut serde_json::Value| {
        config["sliding_window"] = serde_json::Value::Null;
        config["original_max_position_embeddings"] = 128.into();
        config["rope_parameters"] = serde_json::json!({
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.125, 1.25, 1.5, 2.0, 2.5], "long_factor": [1.5, 2.0, 4.0, 6.0, 9.0, 12.0],
        });
    };
    for (family, names) in [
        ("llama", &["rope_freqs.weight"][..]),
        ("phi3", &["rope_factors_short.weight", "rope_factors_long.weight"][..]),
    ] {
        let (directory, checkpoint, exported) = export(family, |config| {
            if family == "phi3" {
                long_rope(config);
            }
        });
        assert_eq!(exported.unwrap(), GgufExport::default());
        let path = directory.path().join("e.gguf");
        let file = GgufFile::open(&path).unwrap();
        assert!(names.iter().all(|name| file.shape(name).is_some()), "{family}");
        let read = Checkpoint::open(&path).unwrap();
        assert_eq!(tensors(&read), tensors(&checkpoint), "{family}");
        let scaling = |checkpoint: &Checkpoint| {
            format!("{:?}", checkpoint.config().rotary[0].as_ref().unwrap().scaling)
        };
        if family == "llama" {
            assert_eq!(scaling(&read), scaling(&checkpoint));
        }
    }
}

#[test]
fn a_model_that_llama_cpp_would_compute_otherwise_is_not_written() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(&str, Change, &str); 5] = [
        ("gemma2", |_| (), "its `attention_scale` is"),
        ("smollm3", |config| config["no_rope_layers"] = [1, 0, 1, 0].into(), "its `rotary` is"),
        ("qwen3_moe", |config| config["norm_topk_prob"] = false.into(), "its `experts` is"),
        (
            "llama",
            |config| config["rope_scaling"]["high_freq_factor"] = 3.into(),
            "its `rotary` is",
        ),
        (
            "qwen3",
            |config| {
                config["rope_scaling"] =
                    serde_json::json!({"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0});
            },
            "its `rotary` is",
        ),
    ];
    for (family, change, expected) in cases {
        let (directory, _, exported) = export(family, change);
        let error = exported.unwrap_err().to_string();
        assert!(error.contains(expected), "{family}: {error}");
        let left = fs_err::read_dir(directory.path()).unwrap();
        let is_left = |name: &str| name.ends_with(".gguf");
        let mut names = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(!names.any(|name| is_left(&name)), "{family}");
    }
}

#[test]
fn a_tokenizer_that_gguf_has_no_name_for_is_not_written() {
    let directory = copy_of("qwen2");
    let path = directory.path().join("tokenizer.json");
    let mut tokenizer = read_json(&path);
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|.".into();
    write_json(&path, &tokenizer);
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let file = directory.path().join("e.gguf");
    let error = write_gguf(&checkpoint, &file, GgufFormat::F16, None).unwrap_err().to_string();
    assert!(error.contains("splits text into words by a rule that is not known"), "{error}");
    assert!(error.contains("--base"), "{error}");
}

#[test]
fn metadata_of_a_gguf_file_stay_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let first = directory.path().join("first.gguf");
    let mut builder = gguf_of_fixture("olmo2");
    builder.text("general.author", "nobody").raw("general.odd", 2, &7_u16.to_le_bytes());
    fs_err::write(&first, builder.build()).unwrap();
    let own = Checkpoint::open(&first).unwrap();
    let trained = Checkpoint::open(&fixture("olmo2")).unwrap();
    // a file of its own metadata, and a checkpoint that takes those of its base, but for the chat template
    for (name, checkpoint, base) in [("a", &own, None), ("b", &trained, Some(&*first))] {
        let file = directory.path().join(name);
        write_gguf(checkpoint, &file, GgufFormat::F32, base).unwrap();
        let mut expected = GgufFile::open(&first).unwrap().entries();
        expected.set_integer("general.file_type", 0);
        expected.set_integer("general.quantization_version", 2);
        if base.is_some() {
            let config = read_json(&fixture("olmo2").join("tokenizer_config.json"));
            let template = config["chat_template"].as_str().unwrap();
            expected.set_text("tokenizer.chat_template", template);
        }
        assert_eq!(GgufFile::open(&file).unwrap().entries(), expected);
        assert_eq!(tensors(&Checkpoint::open(&file).unwrap()), tensors(checkpoint));
        let error = write_gguf(checkpoint, &file, GgufFormat::F32, base).unwrap_err();
        assert!(error.to_string().contains("is there already"), "{error}");
    }
    // the file of another model
    let other = Checkpoint::open(&fixture("olmo3")).unwrap();
    let file = directory.path().join("c");
    assert!(write_gguf(&other, &file, GgufFormat::F32, Some(&first)).is_err() && !file.exists());
}

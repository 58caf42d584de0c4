//! Checkpoints read, written, and refused.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use sppo_model::checkpoint::{Checkpoint, TensorData, WeightFiles, WeightFormat, write_checkpoint};
use sppo_model::decoder::{FAMILIES, RotaryScaling, tensor_layout};
use sppo_model::{ModelError, Result};
use support::{
    GgufBuilder, copy_of, fixture, gguf_of_fixture, open_gguf, read_json, refusal, tensors,
    write_json, write_safetensors,
};

fn rewrite(checkpoint: &Checkpoint, directory: &Path, shard_bytes: u64) -> Result<()> {
    // backwards, because the order is free
    let all = tensors(checkpoint)
        .into_iter()
        .rev()
        .map(|(name, data)| Ok((name, data.shape, data.values)));
    let original = checkpoint.original_config();
    let files = WeightFiles { shard_bytes, ..WeightFiles::default() };
    write_checkpoint(directory, checkpoint.config(), checkpoint.text(), original, all, files)
}

#[test]
fn weights_in_bf16_are_known_as_such_and_rounded_once() {
    let checkpoint = Checkpoint::open(&fixture("llama")).unwrap();
    assert!(!checkpoint.is_stored_in_bf16());
    let directory = tempfile::tempdir().unwrap();
    let all = tensors(&checkpoint).into_iter();
    let all = all.map(|(name, data)| Ok((name, data.shape, data.values)));
    let files = WeightFiles { format: WeightFormat::Bf16, shard_bytes: 100_000 };
    let (config, text) = (checkpoint.config(), checkpoint.text());
    write_checkpoint(directory.path(), config, text, None, all, files).unwrap();
    let halved = Checkpoint::open(directory.path()).unwrap();
    assert!(halved.is_stored_in_bf16());
    for ((name, half), (_, full)) in tensors(&halved).iter().zip(tensors(&checkpoint)) {
        for (half, full) in half.values.iter().zip(full.values) {
            assert!((half - full).abs() <= full.abs() / 256.0, "{name}");
            assert_eq!(half.to_bits() & 0xffff, 0, "{name}");
        }
    }
}

#[test]
fn the_shapes_are_those_that_transformers_has() {
    for family in FAMILIES.iter().map(|family| family.model_type()) {
        let checkpoint = Checkpoint::open(&fixture(family)).unwrap();
        let golden = read_json(&fixture(family).join("golden.json"));
        let expected: std::collections::BTreeMap<String, Vec<usize>> =
            serde_json::from_value(golden["param_shapes"].clone()).unwrap();
        let config = checkpoint.config();
        if config.experts.is_some() {
            // transformers holds experts in other tensors than it writes
            continue;
        }
        let mut rows: std::collections::BTreeMap<String, usize> = Default::default();
        for tensor in tensor_layout(config) {
            let stored = config.family.source(config, &tensor.name).tensor;
            assert_eq!(expected[&stored][1..], tensor.shape[1..], "{family}: {stored}");
            *rows.entry(stored).or_default() += tensor.shape[0];
        }
        let expected = expected.into_iter().map(|(name, shape)| (name, shape[0])).collect();
        assert_eq!(rows, expected, "{family}");
    }
}

#[test]
fn a_written_checkpoint_is_read_back_bit_for_bit() {
    let checkpoint = Checkpoint::open(&fixture("llama")).unwrap();
    for (shard_bytes, file_count) in [(WeightFiles::default().shard_bytes, 1), (150_000, 5)] {
        let directory = tempfile::tempdir().unwrap();
        rewrite(&checkpoint, directory.path(), shard_bytes).unwrap();
        let again = Checkpoint::open(directory.path()).unwrap();
        assert_eq!(tensors(&again), tensors(&checkpoint));
        assert_eq!(again.config(), checkpoint.config());
        let weights = fs_err::read_dir(directory.path()).unwrap().filter(|entry| {
            entry.as_ref().unwrap().path().extension().is_some_and(|ext| ext == "safetensors")
        });
        assert_eq!(weights.count(), file_count);
        // what was not changed is the same to the byte
        for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            let read = |directory: &Path| fs_err::read(directory.join(name)).unwrap();
            assert_eq!(read(directory.path()), read(&fixture("llama")), "{name}");
        }
        assert_eq!(
            read_json(&directory.path().join("config.json")),
            read_json(&fixture("llama").join("config.json"))
        );
        let error = rewrite(&checkpoint, directory.path(), shard_bytes).unwrap_err().to_string();
        assert!(error.contains("already holds model.safetensors"), "{error}");
    }
}

#[test]
fn the_identity_follows_the_content() {
    let directory = copy_of("llama");
    let identity = |path: &Path| Checkpoint::open(path).unwrap().identity().unwrap().sha256;
    let before = identity(directory.path());
    assert_eq!(before, identity(&fixture("llama")));
    let weights = directory.path().join("model.safetensors");
    let mut bytes = fs_err::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs_err::write(&weights, bytes).unwrap();
    assert_ne!(before, identity(directory.path()));
}

#[test]
fn what_is_written_must_be_the_whole_model() {
    let checkpoint = Checkpoint::open(&fixture("llama")).unwrap();
    let write = |change: fn(&mut Vec<(String, TensorData)>)| {
        let mut all = tensors(&checkpoint);
        change(&mut all);
        let directory = tempfile::tempdir().unwrap();
        let all = all.into_iter().map(|(name, data)| Ok((name, data.shape, data.values)));
        write_checkpoint(
            directory.path(),
            checkpoint.config(),
            checkpoint.text(),
            None,
            all,
            WeightFiles::default(),
        )
        .unwrap_err()
        .to_string()
    };
    let missing = write(|all| {
        all.pop();
    });
    assert!(missing.contains("`lm_head.weight` was not given"), "{missing}");
    let twice = write(|all| all.push(all[0].clone()));
    assert!(twice.contains("given twice"), "{twice}");
    let wrong = write(|all| all[1].1.shape.push(1));
    assert!(wrong.contains("[64, 1]"), "{wrong}");
}

#[test]
fn weights_have_their_name_only_once_they_are_whole() {
    let checkpoint = Checkpoint::open(&fixture("llama")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let weights = directory.path().join("model.safetensors");
    let cut = tensors(&checkpoint).into_iter().enumerate().map(|(index, (name, data))| {
        assert!(!weights.exists(), "others could read zeros from it");
        match index {
            0..3 => Ok((name, data.shape, data.values)),
            _ => Err(ModelError::Cancelled),
        }
    });
    let (config, text) = (checkpoint.config(), checkpoint.text());
    write_checkpoint(directory.path(), config, text, None, cut, WeightFiles::default())
        .unwrap_err();
    let left = fs_err::read_dir(directory.path()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_str().unwrap().contains("safetensors")), "{left:?}");
}

#[test]
fn a_full_disk_is_told_apart() {
    // the kernel's device that is always full
    let directory = copy_of("llama");
    if !Path::new("/dev/full").exists() {
        eprintln!("skipped: there is no /dev/full");
        return;
    }
    #[cfg(unix)]
    {
        let target = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", target.path().join("tokenizer.json")).unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let error = rewrite(&checkpoint, target.path(), 1 << 30).unwrap_err();
        let ModelError::File { message, hint, .. } = error else { panic!("{error}") };
        assert!(hint.unwrap().contains("free some space"), "{message}");
    }
}

#[test]
fn damaged_directories_are_refused() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage, &str); 15] = [
        (
            "truncated weights",
            |d| {
                let bytes = fs_err::read(d.join("model.safetensors")).unwrap();
                fs_err::write(d.join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
            },
            "not a whole safetensors file",
        ),
        (
            "empty weights",
            |d| fs_err::write(d.join("model.safetensors"), "").unwrap(),
            "not a whole safetensors file",
        ),
        (
            "a header beyond the file",
            |d| {
                let mut bytes = fs_err::read(d.join("model.safetensors")).unwrap();
                bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
                fs_err::write(d.join("model.safetensors"), bytes).unwrap();
            },
            "not a whole safetensors file",
        ),
        (
            "a tensor twice in one header",
            |d| {
                let bytes = fs_err::read(d.join("model.safetensors")).unwrap();
                let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
                let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
                let json: Value = serde_json::from_str(header).unwrap();
                let again = format!("\"lm_head.weight\":{},", json["lm_head.weight"]);
                let header = header.replacen('{', &format!("{{{again}"), 1);
                let size = (header.len() as u64).to_le_bytes();
                let file = [&size[..], header.as_bytes(), &bytes[8 + length..]].concat();
                fs_err::write(d.join("model.safetensors"), file).unwrap();
            },
            "tensor `lm_head.weight` stands there twice",
        ),
        (
            "no weights",
            |d| fs_err::remove_file(d.join("model.safetensors")).unwrap(),
            "holds neither model.safetensors nor",
        ),
        (
            "pickled weights",
            |d| {
                fs_err::rename(d.join("model.safetensors"), d.join("pytorch_model.bin")).unwrap();
            },
            "pickle is never read",
        ),
        (
            "a missing shard",
            |d| index(d, &json!({"a": "model-00001-of-00001.safetensors"})),
            "model-00001-of-00001.safetensors: is missing",
        ),
        (
            "a path outside",
            |d| index(d, &json!({"a": "../model.safetensors"})),
            "\"../model.safetensors\", which is not",
        ),
        ("an absolute path", |d| index(d, &json!({"a": "/etc/model.safetensors"})), "which is not"),
        ("an index without map", |d| index(d, &json!({})), "has no `weight_map`"),
        (
            "a tensor that the shard lacks",
            |d| {
                fs_err::copy(d.join("model.safetensors"), d.join("model-1.safetensors")).unwrap();
                index(d, &json!({"no.such": "model-1.safetensors"}));
            },
            "says that tensor `no.such` is in model-1.safetensors",
        ),
        (
            "a tensor in two shards",
            |d| {
                for name in ["model-1.safetensors", "model-2.safetensors"] {
                    fs_err::copy(d.join("model.safetensors"), d.join(name)).unwrap();
                }
                index(d, &json!({"a": "model-1.safetensors", "b": "model-2.safetensors"}));
            },
            "stands in",
        ),
        (
            "another width",
            |d| config(d, "intermediate_size", json!(113)),
            "has the shape [112, 64]; the configuration demands [113, 64]",
        ),
        (
            "another depth",
            |d| config(d, "num_hidden_layers", json!(4)),
            "`model.layers.3.input_layernorm.weight` is missing",
        ),
        (
            "a small vocabulary",
            |d| {
                let mut tokenizer = read_json(&d.join("tokenizer.json"));
                tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
                    "id": 512, "content": "<|new|>", "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true,
                }));
                write_json(&d.join("tokenizer.json"), &tokenizer);
            },
            "the tokenizer knows 513 tokens, the model only 512",
        ),
    ];
    for (what, damage, expected) in cases {
        let directory = copy_of("llama");
        damage(directory.path());
        let error = refusal(directory.path());
        assert!(error.contains(expected), "{what}: {error}");
    }
    assert!(refusal(Path::new("/nowhere")).contains("there is no such file"));
}

fn index(directory: &Path, weight_map: &Value) {
    let _ = fs_err::remove_file(directory.join("model.safetensors"));
    let index = match weight_map.as_object().unwrap().is_empty() {
        true => json!({"metadata": {}}),
        false => json!({"weight_map": weight_map}),
    };
    write_json(&directory.join("model.safetensors.index.json"), &index);
}

fn config(directory: &Path, key: &str, value: Value) {
    let path = directory.join("config.json");
    let mut json = read_json(&path);
    json[key] = value;
    write_json(&path, &json);
}

#[test]
fn half_precision_weights_are_widened() {
    let directory = copy_of("llama");
    let whole = Checkpoint::open(directory.path()).unwrap();
    for kind in ["F16", "BF16"] {
        let mut header = serde_json::Map::new();
        let mut data = Vec::new();
        for (name, tensor) in tensors(&whole) {
            let start = data.len();
            data.extend(tensor.values.iter().flat_map(|&value| match kind {
                "F16" => half::f16::from_f32(value).to_le_bytes(),
                _ => half::bf16::from_f32(value).to_le_bytes(),
            }));
            header.insert(
                name,
                json!({"dtype": kind, "shape": tensor.shape, "data_offsets": [start, data.len()]}),
            );
        }
        let header = Value::Object(header).to_string();
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        let narrow = copy_of("llama");
        fs_err::write(narrow.path().join("model.safetensors"), file).unwrap();
        let narrow = Checkpoint::open(narrow.path()).unwrap();
        let limit = if kind == "F16" { 1e-3 } else { 8e-3 };
        for ((name, wide), (_, narrow)) in tensors(&whole).iter().zip(tensors(&narrow)) {
            for (a, b) in wide.values.iter().zip(narrow.values) {
                assert!((a - b).abs() <= limit * a.abs() + 1e-7, "{kind} {name}: {a} {b}");
            }
        }
    }
}

#[test]
fn a_gguf_file_holds_the_same_model() {
    for family in [
        "llama",
        "gemma2",
        "gemma3_text",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "olmo2",
        "olmo3",
        "phi3",
    ] {
        let (_directory, opened) = open_gguf(&gguf_of_fixture(family).build());
        let gguf = opened.unwrap();
        let original = Checkpoint::open(&fixture(family)).unwrap();
        for ((name, found), (_, expected)) in tensors(&gguf).iter().zip(tensors(&original)) {
            // a norm that was stored with 1 added has lost its last bits
            let tolerance = if family.starts_with("gemma") { 2.5e-7 } else { 0.0 };
            assert_eq!(found.shape, expected.shape, "{name}");
            for (found, expected) in found.values.iter().zip(&expected.values) {
                assert!((found - expected).abs() <= tolerance, "{name}: {found} {expected}");
            }
        }
        // what the format cannot say: the divisors of the tiny Llama, and the query scale of Gemma
        let mut expected = original.config().clone();
        for rotary in expected.rotary.iter_mut().flatten().filter(|_| family == "llama") {
            rotary.scaling = RotaryScaling::Unscaled;
        }
        expected.attention_scale = (expected.head_size as f64).powf(-0.5);
        expected.norm_epsilon = f64::from(expected.norm_epsilon as f32);
        let close = (gguf.config().attention_scale - expected.attention_scale).abs() < 1e-12;
        assert!(close, "{family}");
        expected.attention_scale = gguf.config().attention_scale;
        assert_eq!(gguf.config(), &expected);

        let written = tempfile::tempdir().unwrap();
        rewrite(&gguf, written.path(), 1 << 30).unwrap();
        let again = Checkpoint::open(written.path()).unwrap();
        assert_eq!(tensors(&again), tensors(&gguf));
        expected.attention_scale = again.config().attention_scale;
        assert!((expected.attention_scale - gguf.config().attention_scale).abs() < 1e-12);
        assert_eq!(again.config(), &expected);
        assert_eq!(again.text().special_tokens(), gguf.text().special_tokens());
    }
}

#[test]
fn the_text_part_of_a_model_of_images_is_a_model() {
    let original = Checkpoint::open(&fixture("gemma3_text")).unwrap();
    let directory = copy_of("gemma3_text");
    let path = directory.path();
    let text = read_json(&path.join("config.json"));
    let config = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "text_config": text, "vision_config": {"hidden_size": 8}, "eos_token_id": [1, 5],
    });
    write_json(&path.join("config.json"), &config);
    for prefix in ["model.language_model.", "language_model.model."] {
        let renamed = |(name, data): (String, TensorData)| {
            (name.replace("model.", prefix), data.shape, data.values)
        };
        let mut all: Vec<_> = tensors(&original).into_iter().map(renamed).collect();
        let vision = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight";
        all.push((vision.into(), vec![2, 2], vec![0.0; 4]));
        write_safetensors(&path.join("model.safetensors"), &json!({"format": "pt"}), &all);
        let opened = Checkpoint::open(path).unwrap();
        assert_eq!(opened.config(), original.config());
        assert_eq!(tensors(&opened), tensors(&original));

        let written = tempfile::tempdir().unwrap();
        rewrite(&opened, written.path(), 1 << 30).unwrap();
        let config = read_json(&written.path().join("config.json"));
        assert_eq!(config["architectures"], json!(["Gemma3ForCausalLM"]));
        assert_eq!(
            (&config["model_type"], &config["eos_token_id"]),
            (&json!("gemma3_text"), &json!([1, 5]))
        );
        assert_eq!(tensors(&Checkpoint::open(written.path()).unwrap()), tensors(&original));
    }
}

#[test]
fn llama3_scaling_is_recognised_by_its_divisors() {
    let divisors = |change: f32| -> Vec<u8> {
        let divisor = |pair: i32| {
            let wavelength = std::f64::consts::TAU * 500_000_f64.powf(f64::from(pair) / 8.0);
            let smooth = ((8192.0 / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
            1.0 / ((1.0 - smooth) / 8.0 + smooth)
        };
        (0..8).flat_map(|pair| (divisor(pair) as f32 * change).to_le_bytes()).collect()
    };
    let mut file = gguf_of_fixture("llama");
    file.tensor("rope_freqs.weight", &[8], 0, divisors(1.0));
    let (_directory, opened) = open_gguf(&file.build());
    let scaling = opened.unwrap().config().rotary[0].clone().unwrap().scaling;
    let expected = RotaryScaling::Llama3 {
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_context: 8192.0,
    };
    assert_eq!(scaling, expected);
    file.tensors.last_mut().unwrap().bytes = divisors(1.5);
    let error = open_gguf(&file.build()).1.unwrap_err().to_string();
    assert!(error.contains("`rope_freqs.weight` are not those of Llama 3"), "{error}");
}

#[test]
fn damaged_gguf_files_are_refused() {
    type Damage = fn(&mut GgufBuilder);
    let cases: [(Damage, &str); 13] = [
        (|f| f.tensors[3].kind = 31, "number format Q4_0_4_4, which is not supported"),
        (|f| f.tensors[3].kind = 99, "number format number 99"),
        (|f| f.tensors[3].offset = Some(u64::MAX - 31), "beyond the end of the file"),
        (|f| f.tensors[3].offset = Some(1), "is not aligned"),
        (|f| f.tensors[3].dimensions = vec![1 << 40, 1 << 40], "beyond the end of the file"),
        (|f| f.tensors[3].kind = 12, "not a multiple of Q4_K's 256"),
        (
            |f| f.tensors[3].name = "token_embd.weight".into(),
            "`token_embd.weight` stands there twice",
        ),
        (|f| f.tensors[3].name = "blk.0.attn_q.bias".into(), "is missing"),
        (
            |f| {
                f.tensor("blk.0.attn_q.bias", &[64], 0, vec![0; 256]);
            },
            "holds the tensor `blk.0.attn_q.bias`",
        ),
        (
            |f| {
                f.raw(
                    "list",
                    9,
                    &[&8_u32.to_le_bytes()[..], &(1_u64 << 60).to_le_bytes()].concat(),
                );
            },
            "announces an array of 1152921504606846976",
        ),
        (
            |f| {
                f.raw("text", 8, &u64::MAX.to_le_bytes());
            },
            "beyond the end of the file",
        ),
        (
            |f| {
                f.entries[0].1 = [&8_u32.to_le_bytes()[..], &5_u64.to_le_bytes(), b"phi-3"].concat()
            },
            "the GGUF architecture `phi-3` is not supported; supported: llama",
        ),
        (
            |f| {
                f.integer("general.alignment", 0);
            },
            "general.alignment is 0",
        ),
    ];
    for (damage, expected) in cases {
        let mut file = gguf_of_fixture("llama");
        damage(&mut file);
        let error = open_gguf(&file.build()).1.unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let whole = gguf_of_fixture("llama").build();
    // cut anywhere, it is refused; every byte of the small header parts, then in strides
    for length in (0..64).chain((64..whole.len()).step_by(4099)) {
        assert!(open_gguf(&whole[..length]).1.is_err(), "cut at {length}");
    }
    let mut version = whole.clone();
    version[4] = 1;
    let error = open_gguf(&version).1.unwrap_err().to_string();
    assert!(error.contains("is GGUF version 1; little-endian versions 2 and 3"), "{error}");
    let mut count = whole;
    count[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let error = open_gguf(&count).1.unwrap_err().to_string();
    assert!(error.contains("dimensions") || error.contains("beyond the end"), "{error}");
}

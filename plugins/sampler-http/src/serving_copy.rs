//! Copies of weights in the form that vLLM can reload.
//!
//! vLLM reloads a model whose head is tied to its embeddings without the head, and reports success. A copy that
//! holds the head as a tensor of its own, and says so, is reloaded whole. Only the embeddings are written once
//! more; the other files are linked.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde_json::{Map, Value, json};
use sppo_plugin::PluginError;

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// Readers take a file of the usual name for the whole model, so a model of one file becomes one of two.
const FIRST_OF_TWO: &str = "model-00001-of-00002.safetensors";
const SECOND_OF_TWO: &str = "model-00002-of-00002.safetensors";
/// The file of the head beside a model of several.
const HEAD_FILE: &str = "lm_head.safetensors";
const HEAD: &str = "lm_head.weight";
const EMBEDDINGS: &str = "model.embed_tokens.weight";

/// Longest header that is read: the largest models have some hundred kilobytes.
const LONGEST_HEADER: u64 = 100 << 20;

/// A tensor in a file.
struct Stored {
    file: PathBuf,
    /// Type and shape, as the header has them.
    form: Map<String, Value>,
    start: u64,
    length: u64,
}

/// Whether a Hugging Face directory holds its output head as a tensor of its own; `None` for what is no such
/// directory.
#[must_use]
pub fn has_own_head(directory: &Path) -> Option<bool> {
    let map = weight_map(directory).ok()?;
    map.contains_key(EMBEDDINGS).then(|| map.contains_key(HEAD))
}

/// Gives a model in a Hugging Face directory, whose head is tied to its embeddings, a head of its own: a file
/// more, an index of all files, and a configuration that says so. Files that may be links to others are
/// replaced and not changed.
///
/// # Errors
/// When the directory holds no such model, or cannot be written.
pub fn untie_head(directory: &Path) -> Result<(), PluginError> {
    let failed = |error: std::io::Error| {
        PluginError::failed(format!("the head cannot be written of its own: {error}"))
            .with_hint("make room on the disk, and see that the directory can be written")
    };
    let mut map = weight_map(directory).map_err(failed)?;
    if map.contains_key(HEAD) {
        return Ok(());
    }
    let embeddings = find_embeddings(directory, &map).map_err(failed)?;
    let is_one_file = map.values().all(|file| file == SINGLE);
    let head_file = if is_one_file { SECOND_OF_TWO } else { HEAD_FILE };
    write_head(&directory.join(head_file), &embeddings).map_err(failed)?;
    if is_one_file {
        fs::rename(directory.join(SINGLE), directory.join(FIRST_OF_TWO)).map_err(failed)?;
        map.values_mut().for_each(|file| *file = json!(FIRST_OF_TWO));
    }
    map.insert(HEAD.into(), json!(head_file));
    let mut config = read_json(&directory.join(CONFIG)).map_err(failed)?;
    config["tie_word_embeddings"] = json!(false);
    let total = total_size(directory, &map).map_err(failed)?;
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    replace(&directory.join(INDEX), &index).map_err(failed)?;
    replace(&directory.join(CONFIG), &config).map_err(failed)
}

/// A copy of a model, with a head of its own, in a directory that is made anew.
pub(crate) fn write_serving_copy(from: &Path, to: &Path) -> Result<(), PluginError> {
    let failed = |error: std::io::Error| {
        PluginError::failed(format!("a copy of the weights to serve cannot be made: {error}"))
            .with_hint("make room on the disk, then give the same command again")
    };
    if to.exists() {
        fs::remove_dir_all(to).map_err(failed)?;
    }
    fs::create_dir_all(to).map_err(failed)?;
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (source, target) =
            (fs::canonicalize(entry.path()).map_err(failed)?, to.join(entry.file_name()));
        if source.is_file() && fs::hard_link(&source, &target).is_err() {
            // Another disk.
            fs::copy(&source, &target).map_err(failed)?;
        }
    }
    untie_head(to)
}

/// The file of every tensor.
fn weight_map(directory: &Path) -> std::io::Result<Map<String, Value>> {
    if let Ok(index) = read_json(&directory.join(INDEX)) {
        return match index.get("weight_map") {
            Some(Value::Object(map)) => Ok(map.clone()),
            _ => Err(invalid("the index of the weights has no map")),
        };
    }
    let (header, _) = header(&directory.join(SINGLE))?;
    let names = header.into_iter().map(|(name, _)| name).filter(|name| name != "__metadata__");
    Ok(names.map(|name| (name, json!(SINGLE))).collect())
}

fn find_embeddings(directory: &Path, map: &Map<String, Value>) -> std::io::Result<Stored> {
    let file = map.get(EMBEDDINGS).and_then(Value::as_str);
    let file =
        directory.join(file.ok_or_else(|| invalid("there are no embeddings among the weights"))?);
    let (mut header, data) = header(&file)?;
    let Some(Value::Object(mut form)) = header.remove(EMBEDDINGS) else {
        return Err(invalid("the embeddings are not in the file that the index names"));
    };
    let offsets = form.remove("data_offsets").unwrap_or_default();
    let offset = |index: usize| offsets.get(index).and_then(Value::as_u64);
    match (offset(0), offset(1)) {
        (Some(start), Some(end)) if start <= end => {
            Ok(Stored { file, form, start: data + start, length: end - start })
        }
        _ => Err(invalid("the header of the embeddings is damaged")),
    }
}

fn write_head(path: &Path, embeddings: &Stored) -> std::io::Result<()> {
    let mut form = embeddings.form.clone();
    form.insert("data_offsets".into(), json!([0, embeddings.length]));
    let mut header = json!({"__metadata__": {"format": "pt"}, HEAD: form}).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut from = fs::File::open(&embeddings.file)?;
    from.seek(SeekFrom::Start(embeddings.start))?;
    let mut to = fs::File::create(path)?;
    to.write_all(&(header.len() as u64).to_le_bytes())?;
    to.write_all(&header)?;
    let copied = std::io::copy(&mut from.take(embeddings.length), &mut to)?;
    if copied == embeddings.length {
        to.sync_all()
    } else {
        Err(invalid("the weights are cut short"))
    }
}

/// Bytes of all tensors.
fn total_size(directory: &Path, map: &Map<String, Value>) -> std::io::Result<u64> {
    let mut files: Vec<&str> = map.values().filter_map(Value::as_str).collect();
    files.sort_unstable();
    files.dedup();
    let size = |file: &str| {
        let path = directory.join(file);
        Ok(fs::metadata(&path)?.len() - header(&path)?.1)
    };
    files.into_iter().map(size).sum()
}

/// The header of a safetensors file, and the place at which its data begins.
fn header(path: &Path) -> std::io::Result<(Map<String, Value>, u64)> {
    let mut file = fs::File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER {
        return Err(invalid("this is no safetensors file"));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header)?;
    Ok((serde_json::from_slice(&header)?, 8 + length))
}

fn read_json(path: &Path) -> std::io::Result<Value> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Puts another file in the place of one that may have several names.
fn replace(path: &Path, content: &Value) -> std::io::Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, serde_json::to_vec_pretty(content)?)?;
    fs::rename(partial, path)
}

fn invalid(message: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model of two tensors: embeddings of six numbers, and a norm.
    fn tied_model(directory: &Path) {
        let header = json!({
            "model.norm.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            EMBEDDINGS: {"dtype": "F32", "shape": [3, 2], "data_offsets": [4, 28]},
        });
        let header = header.to_string();
        let data: Vec<u8> = (0..28).collect();
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        fs::write(directory.join(SINGLE), file).unwrap();
        fs::write(directory.join(CONFIG), r#"{"tie_word_embeddings": true, "x": 1}"#).unwrap();
    }

    #[test]
    fn the_copy_has_the_embeddings_as_its_head_and_the_original_is_untouched() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::create_dir(&from).unwrap();
        tied_model(&from);
        assert_eq!(has_own_head(&from), Some(false));
        // Twice: a copy that was left half-done is made anew.
        for _ in 0..2 {
            write_serving_copy(&from, &to).unwrap();
        }
        assert_eq!((has_own_head(&from), has_own_head(&to)), (Some(false), Some(true)));
        let head = fs::read(to.join(SECOND_OF_TWO)).unwrap();
        assert_eq!(head[head.len() - 24..], (4..28).collect::<Vec<u8>>());
        assert_eq!(header(&to.join(SECOND_OF_TWO)).unwrap().0[HEAD]["shape"], json!([3, 2]));
        let config = |of: &Path| read_json(&of.join(CONFIG)).unwrap();
        assert_eq!(config(&to), json!({"tie_word_embeddings": false, "x": 1}));
        assert_eq!(config(&from)["tie_word_embeddings"], json!(true));
        let index = read_json(&to.join(INDEX)).unwrap();
        assert_eq!(index["metadata"]["total_size"], json!(52));
        assert_eq!(index["weight_map"][HEAD], json!(SECOND_OF_TWO));
        assert!(from.join(SINGLE).exists() && !to.join(SINGLE).exists());
        assert_eq!(has_own_head(directory.path()), None);
    }
}

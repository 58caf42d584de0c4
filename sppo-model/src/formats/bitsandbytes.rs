//! Safetensors files of models that bitsandbytes has quantised to NF4.
//!
//! Beside a matrix `NAME` of packed bytes stand `NAME.absmax`, `NAME.quant_map` and
//! `NAME.quant_state.bitsandbytes__nf4`, JSON as bytes; with double quantisation also `NAME.nested_absmax` and
//! `NAME.nested_quant_map`.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::nf4::{Nf4Blocks, Nf4Dtype, Scales};
use super::quantized_matrix::QuantizedMatrix;
use super::safetensors::SafetensorsFiles;
use super::weight_file::{WeightFile, check_finite};
use crate::error::{ModelError, Result};

const CONFIG: &str = "quantization_config";
const STATE: &str = ".quant_state.bitsandbytes__nf4";
/// Endings of the tensors that stand beside a matrix.
const COMPANIONS: [&str; 4] = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];

/// Takes the description of weights in NF4 out of a `config.json`, so that it is that of the dense model. Returns
/// whether there was one; that of another format is left there.
///
/// # Errors
/// When bitsandbytes has quantised the weights in another way.
pub(crate) fn take_config(config: &mut Value, path: &Path) -> Result<bool> {
    let quantization = &config[CONFIG];
    if quantization["quant_method"] != "bitsandbytes" {
        return Ok(false);
    }
    let expected = [
        ("load_in_4bit", Value::Bool(true)),
        ("bnb_4bit_quant_type", "nf4".into()),
        ("bnb_4bit_quant_storage", "uint8".into()),
    ];
    for (key, value) in expected {
        if quantization[key] != value {
            return Err(ModelError::file(
                path,
                format!("`{CONFIG}.{key}` is {}; of bitsandbytes' formats, NF4 in bytes alone is supported: {value}", quantization[key]),
            )
            .with_hint("take the model that was quantized, or a .gguf file of it"));
        }
    }
    if let Some(config) = config.as_object_mut() {
        config.shift_remove(CONFIG);
    }
    Ok(true)
}

/// The JSON beside a matrix.
#[derive(Debug, Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_dtype: Option<String>,
    nested_offset: Option<f32>,
}

/// Weight files of which some matrices are in NF4.
#[derive(Debug)]
pub(crate) struct Nf4Files {
    files: SafetensorsFiles,
    matrices: HashMap<String, (Vec<usize>, QuantizedMatrix)>,
}

impl Nf4Files {
    /// Finds the matrices in NF4.
    ///
    /// # Errors
    /// When what stands beside one is missing, damaged or of another format.
    pub(crate) fn new(files: SafetensorsFiles) -> Result<Self> {
        let names: Vec<String> =
            files.names().filter_map(|name| name.strip_suffix(STATE)).map(String::from).collect();
        let read = |name: String| read_matrix(&files, &name).map(|matrix| (name, matrix));
        let matrices = names.into_iter().map(read).collect::<Result<_>>()?;
        Ok(Self { files, matrices })
    }

    fn is_companion(&self, name: &str) -> bool {
        COMPANIONS.iter().chain([&STATE]).any(|suffix| {
            name.strip_suffix(suffix).is_some_and(|matrix| self.matrices.contains_key(matrix))
        })
    }
}

fn read_matrix(files: &SafetensorsFiles, name: &str) -> Result<(Vec<usize>, QuantizedMatrix)> {
    let path = files.paths().first().map_or_else(Default::default, |path| path.to_path_buf());
    let refused =
        |what: String| ModelError::file(&path, format!("the matrix `{name}` in NF4: {what}"));
    let bytes = |suffix: &str| {
        let stored = files.bytes(&format!("{name}{suffix}"));
        stored.ok_or_else(|| refused(format!("`{name}{suffix}` is missing or not of bytes")))
    };
    let numbers = |suffix: &str| -> Result<Vec<f32>> { files.values(&format!("{name}{suffix}")) };
    let state: State = serde_json::from_slice(bytes(STATE)?.as_slice())
        .map_err(|error| refused(format!("`{name}{STATE}`: {error}")))?;
    let dtype = match state.dtype.as_str() {
        "float32" => Nf4Dtype::F32,
        "float16" => Nf4Dtype::F16,
        "bfloat16" => Nf4Dtype::Bf16,
        other => return Err(refused(format!("its dtype `{other}` is not supported"))),
    };
    let &[rows, columns] = state.shape.as_slice() else {
        return Err(refused(format!("its shape {:?} is that of no matrix", state.shape)));
    };
    let scales = match (state.nested_blocksize, state.nested_offset) {
        (None, None) => Scales::Plain(numbers(".absmax")?.into()),
        (Some(block_bytes), Some(offset)) if state.nested_dtype.as_deref() == Some("float32") => {
            let code = numbers(".nested_quant_map")?.into();
            let scales = numbers(".nested_absmax")?.into();
            Scales::Nested { bytes: bytes(".absmax")?, code, scales, block_bytes, offset }
        }
        _ => return Err(refused("its nested scales are not described as float32".into())),
    };
    let blocks = Nf4Blocks {
        values: bytes("")?,
        code: numbers(".quant_map")?.into(),
        block_values: state.blocksize,
        scales,
        dtype,
    };
    let is_nf4 = state.quant_type == "nf4";
    let matrix = is_nf4.then(|| QuantizedMatrix::of_nf4(blocks, [rows, columns])).flatten();
    let matrix = matrix.ok_or_else(|| {
        refused(format!("its parts do not fit each other and the shape {:?}", state.shape))
    })?;
    Ok((state.shape, matrix))
}

impl WeightFile for Nf4Files {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        match self.matrices.get(name) {
            Some((shape, _)) => Some(shape),
            None => self.files.shape(name),
        }
    }

    fn values(&self, name: &str) -> Result<Vec<f32>> {
        let Some((_, matrix)) = self.matrices.get(name) else { return self.files.values(name) };
        let values = matrix.values();
        check_finite(self.paths().first().copied().unwrap_or(Path::new("")), name, &values)?;
        Ok(values)
    }

    fn quantized(&self, name: &str) -> Result<Option<QuantizedMatrix>> {
        let Some((_, matrix)) = self.matrices.get(name) else { return Ok(None) };
        if !matrix.is_finite() {
            // says where
            self.values(name)?;
        }
        Ok(Some(matrix.clone()))
    }

    fn quantized_bytes(&self, name: &str) -> Option<u64> {
        self.matrices.get(name).map(|(_, matrix)| matrix.byte_size() as u64)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.files.names().filter(|name| !self.is_companion(name)))
    }

    fn shared_names(&self) -> Box<dyn Iterator<Item = (&str, &str)> + '_> {
        self.files.shared_names()
    }

    fn are_alike(&self, one: &str, other: &str) -> bool {
        self.files.are_alike(one, other)
    }

    fn is_bf16(&self, name: &str) -> bool {
        self.files.is_bf16(name)
    }

    fn paths(&self) -> Vec<&Path> {
        self.files.paths()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use safetensors::{Dtype, SafeTensors, tensor::TensorView};
    use serde_json::json;

    use super::*;

    const CASES: [&str; 5] = ["f32-plain", "bf16-plain", "f32-nested", "f16-nested", "bf16-nested"];

    fn data() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/nf4.safetensors")
    }

    #[test]
    fn matrices_have_the_values_that_bitsandbytes_gives_them() {
        let files = Nf4Files::new(SafetensorsFiles::open_file(data()).unwrap()).unwrap();
        let mut names: Vec<&str> =
            files.names().filter(|name| !name.ends_with(".expected")).collect();
        names.sort_unstable();
        let mut cases = CASES;
        cases.sort_unstable();
        assert_eq!(names, cases);
        for name in names {
            let expected = files.values(&format!("{name}.expected")).unwrap();
            assert_eq!(files.values(name).unwrap(), expected, "{name}");
            let matrix = files.quantized(name).unwrap().unwrap();
            let [rows, columns] = matrix.dimensions();
            assert_eq!(files.shape(name).unwrap(), [rows, columns]);
            // rows of 80 values begin within blocks of 64
            let part = matrix.rows(1..rows).unwrap();
            let mut row = vec![0.0; columns];
            part.read_row(0, &mut row);
            assert_eq!(row, expected[columns..2 * columns], "{name}");
            // 4 bits and the scales of 64 values
            let bits = matrix.byte_size() as f64 * 8.0 / expected.len() as f64;
            assert!((4.1..4.6).contains(&bits), "{name}: {bits}");
        }
    }

    /// The file with some bytes of a tensor instead of its own, or without it.
    fn refusal(tensor: &str, bytes: Option<&[u8]>) -> String {
        let stored = fs_err::read(data()).unwrap();
        let stored = SafeTensors::deserialize(&stored).unwrap();
        let replaced = bytes.map(|bytes| {
            let shape = vec![bytes.len()];
            (tensor.to_string(), TensorView::new(Dtype::U8, shape, bytes).unwrap())
        });
        let others = stored.tensors().into_iter().filter(|(name, _)| name != tensor);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("damaged.safetensors");
        safetensors::serialize_to_file(others.chain(replaced), None, &file).unwrap();
        let files = SafetensorsFiles::open_file(file).unwrap();
        Nf4Files::new(files).unwrap_err().to_string()
    }

    #[test]
    fn damaged_matrices_are_refused_by_name() {
        let state = |change: (&str, Value)| {
            let mut state = json!({
                "quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [6, 80]
            });
            state[change.0] = change.1;
            state.to_string().into_bytes()
        };
        let name = "f32-plain.quant_state.bitsandbytes__nf4";
        for change in [
            ("quant_type", json!("fp4")),
            ("blocksize", json!(0)),
            ("blocksize", json!(128)),
            ("shape", json!([6, 81])),
            ("shape", json!([6_u64 << 60, 80])),
        ] {
            let error = refusal(name, Some(&state(change.clone())));
            assert!(error.contains("do not fit each other"), "{change:?}: {error}");
        }
        let others = [
            (("dtype", json!("float64")), "`float64` is not supported"),
            (("shape", json!([480])), "that of no matrix"),
            (("nested_blocksize", json!(256)), "nested scales"),
        ];
        for (change, expected) in others {
            let error = refusal(name, Some(&state(change)));
            assert!(error.contains(expected), "{error}");
        }
        assert!(refusal(name, Some(b"{")).contains(name));
        assert!(refusal("f32-plain.quant_map", None).contains("`f32-plain.quant_map`"));
        assert!(refusal("f32-plain", None).contains("`f32-plain` is missing"));
        assert!(refusal("bf16-nested.absmax", Some(b"x")).contains("do not fit each other"));
    }

    #[test]
    fn other_formats_of_bitsandbytes_are_refused() {
        let nf4 = json!({
            "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_quant_storage": "uint8",
        });
        let take = |quantization: &Value| {
            let mut config = json!({"hidden_size": 4, "quantization_config": quantization});
            take_config(&mut config, Path::new("config.json")).map(|taken| (taken, config))
        };
        assert_eq!(take(&nf4).unwrap(), (true, json!({"hidden_size": 4})));
        for (key, value) in [
            ("load_in_4bit", json!(false)),
            ("bnb_4bit_quant_type", json!("fp4")),
            ("bnb_4bit_quant_storage", json!("bfloat16")),
        ] {
            let mut other = nf4.clone();
            other[key] = value;
            let error = take(&other).unwrap_err().to_string();
            assert!(error.contains(&format!("quantization_config.{key}")), "{error}");
        }
        let gptq = json!({"quant_method": "gptq", "bits": 4});
        assert!(!take(&gptq).unwrap().0);
        assert!(!take(&Value::Null).unwrap().0);
    }
}

#!/usr/bin/env python3
"""Makes the golden numbers of GGUF's number formats in sppo-model/tests/data:

- gguf-blocks.json: random blocks of every format that can be read, and what the Python package `gguf` makes of
  them; of F64, Q8_K and Q1_0, which it does not read, what NumPy computes by ggml's definition;
- gguf-quantized.json: random values in every format that can be written, quantised by the package `gguf`, and
  in Q4_K, which it does not write, by ggml itself, through the bindings of `llama-cpp-python`.

Made with numpy 2.4.6, gguf 0.19.0, and llama-cpp-python 0.3.36 over the library of the wheel xllamacpp
2026.10.11549. Run it without arguments.
"""

import ctypes
import json
import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

DATA = pathlib.Path(__file__).resolve().parents[2] / "sppo-model/tests/data"
READ = [
    Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q2_K, Type.Q3_K,
    Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S, Type.IQ3_XXS, Type.IQ3_S, Type.IQ1_S,
    Type.IQ1_M, Type.IQ4_NL, Type.IQ4_XS, Type.TQ1_0, Type.TQ2_0, Type.MXFP4, Type.NVFP4,
]
Q1_0 = 41
VALUES = 3
generator = np.random.default_rng(20261130)


def single(values):
    """Numbers with as many digits as single precision needs."""
    return [float(str(value)) for value in np.asarray(values, np.float32).ravel()]


def case(number, blocks, values):
    assert np.isfinite(values).all(), number
    return {"type": number, "bytes": blocks.ravel().tolist(), "values": single(values)}


def random_bytes(count, size):
    return generator.integers(0, 256, (count, size), np.uint8)


def random_blocks(kind):
    """Blocks of a format of which all values are finite."""
    values, size = GGML_QUANT_SIZES[kind]
    count = VALUES if values == 1 else max(1, 64 // values)
    while True:
        blocks = random_bytes(count, size)
        with np.errstate(all="ignore"):
            result = dequantize(blocks, kind)
        if np.isfinite(result).all() and np.abs(result).max() < 1e30:
            return blocks, result


def q8_k():
    """`{ f32 scale; i8 values[256]; i16 sums[16] }`"""
    block = random_bytes(1, 292)
    block[0, :4] = np.frombuffer(np.float32(0.0123).tobytes(), np.uint8)
    return block, np.float32(0.0123) * block[0, 4:260].view(np.int8).astype(np.float32)


def q1_0():
    """`{ f16 scale; u8 signs[16] }`"""
    block = random_bytes(2, 18)
    block[:, :2] = np.array([[0.5], [-0.123]], np.float16).view(np.uint8)
    scales = block[:, :2].copy().view(np.float16).astype(np.float32)
    bits = np.unpackbits(block[:, 2:], axis=1, bitorder="little")
    return block, np.where(bits == 1, scales, -scales)


def ggml_q4_k(values):
    import llama_cpp

    library = next(pathlib.Path(llama_cpp.__file__).parent.glob("lib/*ggml-base.so*"))
    ggml = ctypes.CDLL(str(library))
    source = np.ascontiguousarray(values, np.float32)
    target = np.zeros(source.size // 256 * 144, np.uint8)
    ggml.quantize_row_q4_K_ref(
        source.ctypes.data_as(ctypes.c_void_p), target.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(source.size)
    )
    return target


cases = [case(int(kind), *random_blocks(kind)) for kind in READ]
cases.append(case(15, *q8_k()))
cases.append(case(Q1_0, *q1_0()))
doubles = generator.normal(size=VALUES)
cases.append(case(28, np.frombuffer(doubles.tobytes(), np.uint8), doubles))
(DATA / "gguf-blocks.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")

# Of both signs, of one, of very different sizes, and none but zeros.
values = generator.normal(0, 0.05, 1024).astype(np.float32)
values[256:512] = np.abs(values[256:512]) + 1
values[512:768] *= np.exp(generator.normal(0, 3, 256)).astype(np.float32)
values[768:832] = 0
written = {"bf16": Type.BF16, "f16": Type.F16, "q8_0": Type.Q8_0, "q4_0": Type.Q4_0}
quantized = {name: quantize(values, kind).view(np.uint8).ravel().tolist() for name, kind in written.items()}
quantized["q4_k"] = ggml_q4_k(values).tolist()
golden = {"values": single(values), "bytes": quantized}
(DATA / "gguf-quantized.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")

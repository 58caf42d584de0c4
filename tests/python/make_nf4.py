#!/usr/bin/env python3
"""Makes, with bitsandbytes, the golden numbers of matrices in NF4:

- sppo-model/tests/data/nf4.safetensors: matrices of each dtype, with double quantisation and without, and beside each
  `NAME.expected`, what bitsandbytes dequantises it to in f32 arithmetic, in f32;
- tests/fixtures/nf4/llama: the fixture lm/llama as transformers saves it in 4 bits: matrices of layers in NF4, the
  rest in bf16.

Made with torch 2.11.0 and bitsandbytes 0.50.2, on the CPU. Run it without arguments.
"""

import json
import pathlib
import shutil

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
CASES = [
    ("f32-plain", torch.float32, False, (6, 80)),
    ("bf16-plain", torch.bfloat16, False, (6, 80)),
    ("f32-nested", torch.float32, True, (270, 64)),
    ("f16-nested", torch.float16, True, (6, 80)),
    ("bf16-nested", torch.bfloat16, True, (270, 64)),
]


def quantized(values, nested):
    packed, state = quantize_4bit(values, blocksize=64, compress_statistics=nested, quant_type="nf4")
    return packed, state


def stored(name, packed, state):
    """As `Params4bit` is saved."""
    tensors = {name: packed}
    for key, value in state.as_dict(packed=True).items():
        tensors[f"{name}.{key}"] = value
    return {key: value.contiguous() for key, value in tensors.items()}


def numbers():
    torch.manual_seed(20261130)
    tensors = {}
    for name, dtype, nested, shape in CASES:
        packed, state = quantized((0.05 * torch.randn(shape)).to(dtype), nested)
        tensors.update(stored(name, packed, state))
        # The kernels of CUDA multiply in f32 and round the product to the dtype; those of the CPU differ between
        # versions, but in f32 all are one product.
        state.dtype = torch.float32
        expected = dequantize_4bit(packed, state)
        tensors[f"{name}.expected"] = expected.to(dtype).float()
    save_file(tensors, ROOT / "sppo-model/tests/data/nf4.safetensors")


def model():
    source, target = ROOT / "tests/fixtures/lm/llama", ROOT / "tests/fixtures/nf4/llama"
    target.mkdir(parents=True, exist_ok=True)
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]:
        shutil.copy(source / file, target / file)
    config = json.loads((source / "config.json").read_text())
    config["dtype"] = "bfloat16"
    config["quantization_config"] = {
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": None,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "quant_method": "bitsandbytes",
    }
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {}
    for name, values in load_file(source / "model.safetensors").items():
        values = values.to(torch.bfloat16)
        if "_proj." in name:
            tensors.update(stored(name, *quantized(values, True)))
        else:
            tensors[name] = values
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    numbers()
    model()

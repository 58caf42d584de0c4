#!/usr/bin/env python3
"""Makes the seeds that are not text: GGUF, safetensors, Parquet and a plugin's library.

Needs pyarrow and a C compiler (made with pyarrow 26.0 and gcc 12). The other seeds were written by hand.
"""

import json
import pathlib
import struct
import subprocess
import tempfile

import pyarrow
import pyarrow.parquet

HERE = pathlib.Path(__file__).resolve().parent


def write(name, content):
    path = HERE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf_value(value):
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    parts = [gguf_value(part) for part in value]
    return struct.pack("<I", 9) + parts[0][:4] + struct.pack("<Q", len(parts)) + b"".join(part[4:] for part in parts)


def gguf(entries, tensors):
    file = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries))
    for key, value in entries.items():
        file += text(key) + gguf_value(value)
    data = b""
    for name, dimensions, kind, content in tensors:
        file += text(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        file += struct.pack("<IQ", kind, len(data))
        data += content + b"\0" * (-len(content) % 32)
    return file + b"\0" * (-len(file) % 32) + data


def bytes_to_letters():
    """GPT-2's printable letter of every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}


LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 128,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 32,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.rope.freq_base": 10000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def gguf_seeds():
    letters = [*bytes_to_letters().values()]
    gpt2 = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [*letters, "Hi", "<|im_start|>"],
        "tokenizer.ggml.token_type": [1] * 257 + [3],
        "tokenizer.ggml.merges": ["H i"],
        "tokenizer.ggml.bos_token_id": 257,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }
    write("gguf/bpe", gguf(LLAMA | gpt2, [("token_embd.weight", [32, 2], 0, b"\0" * 256)]))
    pieces = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<0x41>", "▁", "H", "i", "▁H"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0],
        "tokenizer.ggml.token_type": [2, 3, 3, 6, 1, 1, 1, 1],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
    }
    scaled = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    write("gguf/pieces", gguf(LLAMA | pieces | scaled, [("a", [2, 1], 1, b"\0\x3c\0\x3c")]))
    # Bytes and values of a block of each number format.
    formats = {2: (18, 32), 3: (20, 32), 6: (22, 32), 7: (24, 32), 8: (34, 32), 10: (84, 256), 11: (110, 256),
               12: (144, 256), 13: (176, 256), 14: (210, 256), 16: (66, 256), 17: (74, 256), 18: (98, 256),
               19: (50, 256), 20: (18, 32), 21: (110, 256), 22: (82, 256), 23: (136, 256), 29: (56, 256),
               30: (2, 1), 34: (54, 256), 35: (66, 256), 39: (17, 32)}
    tensors = [(f"t{kind}", [values], kind, bytes(range(size))) for kind, (size, values) in formats.items()]
    write("gguf/formats", gguf({"general.architecture": "llama"}, tensors))
    part = {"split.no": 0, "split.count": 1, "split.tensors.count": 0, "general.alignment": 64}
    write("gguf/part", gguf(part, []))


def safetensors(header, data):
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + data


def safetensors_seeds():
    header = {
        "__metadata__": {"format": "pt", "b": "a"},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "c": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [8, 12]},
        "d": {"dtype": "F16", "shape": [], "data_offsets": [12, 14]},
    }
    write("safetensors/file", safetensors(header, b"\0" * 14))
    index = {"metadata": {"total_size": 8}, "weight_map": {"a": "a.safetensors"}}
    write("safetensors/index", json.dumps(index).encode())


def parquet_seeds():
    messages = [{"role": "user", "content": "Hi"}]
    answer = [*messages, {"role": "assistant", "content": "Ho"}]
    tables = {
        "text": ({"prompt": ["Hi", "Hi"], "chosen": ["a", "b"], "rejected": ["c", "d"], "chosen_probs": [1.0, 0.5],
                  "chosen_probs_win": [1.0, 0.5], "chosen_probs_lose": [0.0, 0.5]}, "snappy"),
        "messages": ({"messages": [messages], "candidates": [["a", "b"]], "id": [7]}, "zstd"),
        "conversations": ({"chosen": [answer], "rejected": [answer], "score": [1]}, "gzip"),
        "tokens": ({"prompt_tokens": [[1, 2]], "response_tokens": [[3]], "response": ["x"]}, "none"),
    }
    with tempfile.TemporaryDirectory() as directory:
        for name, (columns, codec) in tables.items():
            path = pathlib.Path(directory) / name
            pyarrow.parquet.write_table(pyarrow.table(columns), path, compression=codec, store_schema=False,
                                        write_statistics=False)
            write(f"rows_parquet/{name}", path.read_bytes())


LIBRARY = r"""
const char manifest[] __asm__("sppo_plugin_manifest.mine") = "MANIFEST";
const int module __asm__("sppo_plugin_module.mine") = 1;
"""


def library_seed():
    with tempfile.TemporaryDirectory() as directory:
        source, library = pathlib.Path(directory) / "mine.c", pathlib.Path(directory) / "mine.so"
        manifest = (HERE / "plugin_manifest/manifest").read_bytes().rstrip(b"\0").decode().replace("\n", "\\n")
        source.write_text(LIBRARY.replace("MANIFEST", manifest))
        flags = ["-shared", "-nostdlib", "-s", "-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-Wl,--hash-style=gnu"]
        subprocess.run(["cc", *flags, "-o", library, source], check=True)
        write("plugin_manifest/library", library.read_bytes())


if __name__ == "__main__":
    gguf_seeds()
    safetensors_seeds()
    parquet_seeds()
    library_seed()

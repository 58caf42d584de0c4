"""Loads a GGUF file that `sppo export gguf` wrote in llama.cpp, and compares tokens and log-probabilities.

usage: check_gguf.py MODEL SCORES ROLLOUTS TOLERANCE SOURCE
  MODEL     the GGUF file that llama.cpp loads
  SCORES    JSON lines of `sppo score` with SOURCE, each with prompt_tokens, tokens and log_probs
  ROLLOUTS  JSON lines of `sppo generate --temperature 0 --rollouts` with SOURCE
  SOURCE    the same file, or one whose weights MODEL holds in a wider format

Prints the largest difference per token and fails above TOLERANCE. A greedy token must be llama.cpp's own choice, up to
the first place where the two most probable tokens are closer than twice that. Exits with 77 where the package
llama-cpp-python cannot be used; the package `gguf` reads the file too, where it is installed.
"""

import json
import sys


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


try:
    import llama_cpp
    import numpy as np
except Exception as error:  # A broken installation fails in any way.
    skip(error)
try:
    import gguf
except ImportError:
    gguf = None

# ggml's number of f32: by default the cache of keys and values is in f16.
F32 = 0


def read(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def log_probs(model, tokens):
    """One row per token: the distribution of the next."""
    model.reset()
    model.eval(tokens)
    logits = np.array(model.scores[: len(tokens)], np.float64)
    top = logits.max(axis=1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))


def require_same_values(path, source):
    """Compares all tensors of two files, as the package `gguf` reads them."""
    wide, narrow = (gguf.GGUFReader(file).tensors for file in (path, source))
    assert wide and [tensor.name for tensor in wide] == [tensor.name for tensor in narrow]
    for one, other in zip(wide, narrow):
        values = other.data.astype(np.float32)
        assert np.isfinite(values).all() and np.array_equal(one.data, values), one.name


def main(path, scores, rollouts, tolerance, source):
    if gguf is not None:
        require_same_values(path, source)
    model = llama_cpp.Llama(
        path, n_ctx=256, logits_all=True, type_k=F32, type_v=F32, flash_attn=False, n_threads=1, verbose=False
    )
    worst, lines, greedy = 0.0, 0, 0
    for row in read(scores):
        prompt, response = row["prompt_tokens"], row["tokens"]
        rows = log_probs(model, prompt + response)
        for offset, (token, ours) in enumerate(zip(response, row["log_probs"], strict=True)):
            worst = max(worst, abs(rows[len(prompt) - 1 + offset, token] - ours))
        lines += 1
    for row in read(rollouts):
        prompt = row["prompt_tokens"]
        tokens = model.tokenize(row["rendered_prompt"].encode(), add_bos=False, special=True)
        assert tokens == prompt, f"{row['rendered_prompt']!r} is {tokens} in llama.cpp and {prompt} here"
        for response in row["responses"]:
            rows = log_probs(model, prompt + response["tokens"])
            for offset, token in enumerate(response["tokens"]):
                second, first = np.sort(rows[len(prompt) - 1 + offset])[-2:]
                if first - second < 2 * tolerance:
                    break
                choice = int(rows[len(prompt) - 1 + offset].argmax())
                assert choice == token, f"greedy token {offset} is {choice} in llama.cpp and {token} here"
                greedy += 1
    print(f"{lines} sequences, largest difference {worst:.2e} per token, {greedy} greedy tokens alike")
    return 0 if lines and greedy and worst <= tolerance else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4], float(sys.argv[4]), sys.argv[5]))

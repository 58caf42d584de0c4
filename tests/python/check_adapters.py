"""Loads adapters that `sppo` wrote with PEFT, compares log-probabilities, and saves them again.

usage: check_adapters.py ADAPTERS SCORES OUTPUT
  ADAPTERS  a PEFT directory written by `sppo`
  SCORES    JSON lines with prompt_tokens, tokens and log_probs, as `sppo` computes them
  OUTPUT    where PEFT saves the adapters, for `sppo` to read back

PEFT computes in f64, so that the difference is the rounding of `sppo` alone. Prints the largest difference per token,
and PEFT's own in f32. Fails above 1e-5. Exits with 77 where peft, transformers or torch cannot be used.
"""

import json
import sys


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


if sys.version_info < (3, 10):
    skip("Python is older than 3.10")
try:
    import torch
    import transformers
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM

    transformers_version = tuple(map(int, transformers.__version__.split(".")[:2]))
except Exception as error:  # A broken installation fails in any way.
    skip(error)
# `from_pretrained` takes `dtype` from then on.
if transformers_version < (4, 56):
    skip("transformers is older than 4.56")

TOLERANCE = 1e-5


def load(adapters):
    base = PeftConfig.from_pretrained(adapters).base_model_name_or_path
    # By default Gemma 2 is computed without the limits of its attention.
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )
    # The default product of experts takes no f64.
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return PeftModel.from_pretrained(model, adapters).eval()


def log_probs(model, rows):
    every = []
    for row in rows:
        prompt, response = row["prompt_tokens"], row["tokens"]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0]
        values = torch.log_softmax(logits.double(), dim=-1)
        every += [values[len(prompt) - 1 + place, token].item() for place, token in enumerate(response)]
    return every


def largest_difference(one, other):
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def main(adapters, scores, output):
    torch.set_num_threads(2)
    model = load(adapters)
    with open(scores, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    model.save_pretrained(output)
    in_f32 = log_probs(model, rows)
    theirs = log_probs(model.double(), rows)
    own = largest_difference(theirs, in_f32)
    worst = largest_difference(theirs, [value for row in rows for value in row["log_probs"]])
    print(f"{len(rows)} sequences, largest difference {worst:.2e} per token; PEFT's own in f32 {own:.2e}")
    return 0 if rows and worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))

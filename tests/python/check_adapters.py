"""Loads adapters that `sppo` wrote with PEFT, compares log-probabilities, and saves them again.

usage: check_adapters.py ADAPTERS SCORES OUTPUT
  ADAPTERS  a PEFT directory written by `sppo`
  SCORES    JSON lines with prompt_tokens, tokens and log_probs, as `sppo` computes them
  OUTPUT    where PEFT saves the adapters, for `sppo` to read back

Prints the largest difference per token and fails above 1e-5. Exits with 77 where peft, transformers
or torch cannot be used.
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


def log_probs(model, prompt, response):
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0]
    every = torch.log_softmax(logits.float(), dim=-1)
    return [every[len(prompt) - 1 + place, token].item() for place, token in enumerate(response)]


def main(adapters, scores, output):
    torch.set_num_threads(2)
    base = PeftConfig.from_pretrained(adapters).base_model_name_or_path
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapters).eval()
    with open(scores, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    worst = 0.0
    for row in rows:
        theirs = log_probs(model, row["prompt_tokens"], row["tokens"])
        for ours, other in zip(row["log_probs"], theirs, strict=True):
            worst = max(worst, abs(ours - other))
    print(f"{len(rows)} sequences, largest difference {worst:.2e} per token")
    model.save_pretrained(output)
    return 0 if rows and worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))

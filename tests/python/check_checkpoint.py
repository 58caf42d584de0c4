"""Loads a checkpoint that `sppo` wrote in transformers and compares log-probabilities.

usage: check_checkpoint.py CHECKPOINT SCORES
  CHECKPOINT  a model directory written by `sppo`
  SCORES      JSON lines of `sppo score`, each with prompt_tokens, tokens and log_probs

Prints the largest difference per token and fails above 1e-3. Exits with 77 where transformers or
torch cannot be used.
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
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers_version = tuple(map(int, transformers.__version__.split(".")[:2]))
except Exception as error:  # A broken installation fails in any way.
    skip(error)
# `from_pretrained` takes `dtype` from then on.
if transformers_version < (4, 56):
    skip("transformers is older than 4.56")

TOLERANCE = 1e-3


def main(checkpoint, scores):
    torch.set_num_threads(2)
    # By default Gemma 2 is computed without the limits of its attention.
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    AutoTokenizer.from_pretrained(checkpoint)
    worst, lines = 0.0, 0
    with open(scores, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            prompt, response = row["prompt_tokens"], row["tokens"]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + response])).logits[0]
            log_probs = torch.log_softmax(logits.float(), dim=-1)
            for offset, (token, ours) in enumerate(zip(response, row["log_probs"], strict=True)):
                theirs = log_probs[len(prompt) - 1 + offset, token].item()
                worst = max(worst, abs(theirs - ours))
            lines += 1
    print(f"{lines} responses, largest difference {worst:.2e} per token")
    return 0 if lines and worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))

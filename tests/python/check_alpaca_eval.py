"""Has AlpacaEval read two files that `sppo export alpaca-eval` wrote, pair their answers and judge them.

usage: check_alpaca_eval.py OUTPUTS REFERENCE
  OUTPUTS    the answers of the model that is evaluated; all of them the longer ones
  REFERENCE  the answers of another model to the same questions

A judge of this script's own prefers the longer answer, so the model must win every time. Exits with 77 where the
package alpaca-eval cannot be used.
"""

import json
import os
import sys
import tempfile

# It wants one to be there, and asks nobody.
os.environ.setdefault("OPENAI_API_KEY", "none")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

try:
    import alpaca_eval
    import alpaca_eval.decoders.test
    import yaml
except Exception as error:  # A broken installation fails in any way.
    print(f"skipped: {error}")
    sys.exit(77)

BETWEEN = "\n<between the answers>\n"
TEMPLATE = "{output_1}" + BETWEEN + "{output_2}"


def prefers_the_longer(prompts, **_):
    pairs = [prompt.split(BETWEEN) for prompt in prompts]
    verdicts = ["a" if len(first) > len(second) else "b" for first, second in pairs]
    return {"completions": verdicts, "price_per_example": [0] * len(pairs), "time_per_example": [0] * len(pairs)}


def main(outputs, reference):
    # Judges are known by name: this one takes the place of the one for AlpacaEval's own tests.
    alpaca_eval.decoders.test.test_completions = prefers_the_longer
    with tempfile.TemporaryDirectory() as directory:
        template, settings = (os.path.join(directory, name) for name in ("template.txt", "configs.yaml"))
        with open(template, "w", encoding="utf-8") as file:
            file.write(TEMPLATE)
        judge = {
            "prompt_template": template,
            "fn_completions": "test_completions",
            "completions_kwargs": {},
            "completion_parser_kwargs": {"outputs_to_match": {1: "^a", 2: "^b"}},
            "batch_size": 1,
        }
        with open(settings, "w", encoding="utf-8") as file:
            yaml.safe_dump({"longer": judge}, file)
        board, annotations = alpaca_eval.evaluate(
            model_outputs=outputs,
            reference_outputs=reference,
            annotators_config=settings,
            fn_metric="get_winrate",
            sort_by="win_rate",
            precomputed_leaderboard=None,
            output_path=None,
            is_return_instead_of_print=True,
            caching_path=None,
        )
    with open(outputs, encoding="utf-8") as file:
        rows = json.load(file)
    name = rows[0]["generator"]
    assert [(row["instruction"], row["output"]) for row in rows] == [
        (one["instruction"], one["output_2"]) for one in annotations
    ], annotations
    assert board.loc[name, "n_total"] == len(rows) and board.loc[name, "win_rate"] == 100, board
    print(f"AlpacaEval read and judged {len(rows)} answers of {name}")


if __name__ == "__main__":
    main(*sys.argv[1:3])

#!/usr/bin/env python3
"""Makes the golden numbers of the oracles that compare responses with a decoder.

- `tests/fixtures/reward/gpm-llama` and `gpm-gemma2`: General Preference Models (arXiv 2410.02197) with random heads
  on the language models of `tests/fixtures/lm`. `golden.json` has the heads' outputs for token ids, and for texts the
  preferences by the conventions of the released example and of the authors' SPPO pipeline.
- `tests/fixtures/judge/llama.json` and `gemma2.json`: log-probabilities of next tokens, and the preferences of the
  same language models as judges: in the form of RLHFlow's pair-preference models, and by `question.jinja` in a chat.

Everything is computed in float64 with NumPy, from the formulas of the papers, of the models and of the released
programs; tokens are those of transformers' tokenizers. The decoders must reproduce the log-probabilities that
transformers computed for `tests/fixtures/lm` before anything is written. Needs numpy, transformers (without torch),
jinja2 and safetensors (made with numpy 2.4 and transformers 5.23). Run it without arguments.
"""

import json
import pathlib
import shutil

import jinja2
import numpy as np
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
FAMILIES = ["llama", "gemma2"]
TEMPERATURE = 0.1
# Values of a response's vector, and whether the prompt weighs their planes.
HEADS = {"llama": (6, True), "gemma2": (2, False)}

CONTEXT_TEMPLATE = (
    "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n {{ message['content'] }}"
    "{% else %}\n\n<turn> assistant\n {{ message['content'] }}{% endif %}{% endfor %}\n\n\n"
)
PAIR = "[CONTEXT] {context} [RESPONSE A] {first} [RESPONSE B] {second} \n"

CASES = [
    (
        [{"role": "user", "content": "Why is the sky blue?"}],
        ["Blue light is scattered most.", "It is not.", "Ask the sea.", "It is not.", ""],
    ),
    (
        [
            {"role": "user", "content": "Two cities?"},
            {"role": "assistant", "content": "Bern, Rome."},
            {"role": "user", "content": "And a river?"},
        ],
        ["The Rhine.", "A river:\n- Aare"],
    ),
]


def write(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def capped(x, cap):
    return x if cap is None else cap * np.tanh(x / cap)


class Family:
    """A language model of the fixtures in float64, Llama or Gemma 2, with its tokenizer."""

    def __init__(self, name):
        self.directory = FIXTURES / "lm" / name
        self.config = json.loads((self.directory / "config.json").read_text())
        self.is_gemma = name == "gemma2"
        stored = load_file(self.directory / "model.safetensors")
        self.weights = {key: value.astype(np.float64) for key, value in stored.items()}
        self.tokenizer = AutoTokenizer.from_pretrained(self.directory)
        self.frequencies = self.rotary_frequencies()
        self.check()

    def check(self):
        """The log-probabilities of transformers."""
        golden = json.loads((self.directory / "golden.json").read_text())
        for ids, expected in zip(golden["sequences"], golden["logps"]):
            logits = self.logits(self.hidden_states(ids))
            log_probs = np.log(softmax(logits))[range(len(ids) - 1), ids[1:]]
            difference = np.abs(log_probs - expected).max()
            assert difference < 2e-5, f"{self.directory.name}: off by {difference}"

    def rotary_frequencies(self):
        size = self.config["head_dim"]
        frequencies = self.config["rope_theta"] ** -(np.arange(0, size, 2) / size)
        scaling = self.config["rope_scaling"]
        if scaling is None:
            return frequencies
        # Llama 3: long waves are slowed down, those between are blended.
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * frequencies / (2 * np.pi)
        blend = np.clip((turns - low) / (high - low), 0, 1)
        return frequencies * (blend + (1 - blend) / scaling["factor"])

    def norm(self, x, name):
        weight = self.weights[name + ".weight"] + (1 if self.is_gemma else 0)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * weight

    def rotated(self, x):
        """`[tokens, heads, size]`, its halves rotated by each token's position."""
        angles = np.outer(np.arange(len(x)), self.frequencies)[:, None, :]
        one, other = np.split(x, 2, axis=-1)
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)

    def attention(self, x, layer):
        config, length = self.config, len(x)
        project = lambda part, heads: (
            x @ self.weights[f"model.layers.{layer}.self_attn.{part}_proj.weight"].T
        ).reshape(length, heads, config["head_dim"])
        heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
        queries = self.rotated(project("q", heads))
        keys = np.repeat(self.rotated(project("k", shared)), heads // shared, axis=1)
        values = np.repeat(project("v", shared), heads // shared, axis=1)
        scale = config.get("query_pre_attn_scalar", config["head_dim"]) ** -0.5
        scores = capped(
            np.einsum("qhd,khd->hqk", queries, keys) * scale, config.get("attn_logit_softcapping")
        )
        distance = np.arange(length)[:, None] - np.arange(length)[None, :]
        seen = distance >= 0
        if config.get("layer_types", [])[layer : layer + 1] == ["sliding_attention"]:
            seen &= distance < config["sliding_window"]
        scores = np.where(seen, scores, -np.inf)
        mixed = np.einsum("hqk,khd->qhd", softmax(scores), values).reshape(length, -1)
        return mixed @ self.weights[f"model.layers.{layer}.self_attn.o_proj.weight"].T

    def feed_forward(self, x, layer):
        weight = lambda part: self.weights[f"model.layers.{layer}.mlp.{part}_proj.weight"].T
        gate = x @ weight("gate")
        activated = gelu(gate) if self.is_gemma else gate * sigmoid(gate)
        return (activated * (x @ weight("up"))) @ weight("down")

    def hidden_states(self, ids):
        """The hidden state of each token after the final norm."""
        x = self.weights["model.embed_tokens.weight"][ids]
        if self.is_gemma:
            x = x * self.config["hidden_size"] ** 0.5
        for layer in range(self.config["num_hidden_layers"]):
            norm = lambda x, name: self.norm(x, f"model.layers.{layer}.{name}_layernorm")
            attended = self.attention(norm(x, "input"), layer)
            x = x + (norm(attended, "post_attention") if self.is_gemma else attended)
            before = "pre_feedforward" if self.is_gemma else "post_attention"
            changed = self.feed_forward(norm(x, before), layer)
            x = x + (norm(changed, "post_feedforward") if self.is_gemma else changed)
        return self.norm(x, "model.norm")

    def logits(self, hidden):
        tied = self.weights["model.embed_tokens.weight"]
        head = self.weights.get("lm_head.weight", tied)
        return capped(hidden @ head.T, self.config.get("final_logit_softcapping"))

    def last_hidden(self, ids):
        return self.hidden_states(ids)[-1]

    def next_probs(self, ids):
        return softmax(self.logits(self.last_hidden(ids)))

    def ids(self, text, specials=False):
        return self.tokenizer(text, add_special_tokens=specials)["input_ids"]

    def draw(self, generator, length):
        return generator.integers(4, 150, length).tolist()


# --- General Preference Models


def conventions(family, turns, preset, is_answer):
    """Token ids of a conversation as one of the authors' programs shows it."""
    text = family.tokenizer.apply_chat_template(turns, tokenize=False)
    if preset == "example":
        ids = family.ids(text, specials=True)
        if is_answer:
            ids[-1] = family.tokenizer.eos_token_id
        return ids
    return family.ids(text.replace(family.tokenizer.bos_token, ""))


def preferences(vectors, weights, factor):
    """P[i][j] = sigmoid(factor s(i > j) / tau), s = v_i R^T v_j with the skew-symmetric R of the released code."""
    vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    size = vectors.shape[1]
    matrix = np.zeros((size, size))
    for block in range(size // 2):
        matrix[2 * block, 2 * block + 1] = -weights[block]
        matrix[2 * block + 1, 2 * block] = weights[block]
    scores = vectors @ matrix.T @ vectors.T
    table = scores / TEMPERATURE
    return sigmoid(table - table.T if factor == 2 else table)


def golden_texts(family, value_head, prompt_head):
    texts = []
    for messages, answers in CASES:
        case = {"messages": messages, "answers": answers}
        for preset, factor in [("example", 1), ("sppo-pipeline", 2)]:
            ids = [
                conventions(family, [*messages, {"role": "assistant", "content": answer}], preset, True)
                for answer in answers
            ]
            prompt = conventions(family, messages, preset, False)
            vectors = np.stack([value_head @ family.last_hidden(one) for one in ids])
            weights = np.ones(vectors.shape[1] // 2)
            if prompt_head is not None:
                weights = softmax(prompt_head @ family.last_hidden(prompt))
            probability = preferences(vectors, weights, factor)
            case[preset] = {"ids": ids, "prompt_ids": prompt, "probability": probability.tolist()}
        texts.append(case)
    return texts


def make_general_preference(name, family, generator):
    directory = FIXTURES / "reward" / f"gpm-{name}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for file in family.directory.iterdir():
        if file.name not in ("golden.json", "model.safetensors"):
            shutil.copy(file, directory)
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = ["CustomRewardModel"]
    write(directory / "config.json", config)
    values, has_prompt_head = HEADS[name]
    hidden = config["hidden_size"]
    draw = lambda outputs: (generator.normal(size=(outputs, hidden)) * hidden**-0.5).astype(np.float32)
    weights = load_file(family.directory / "model.safetensors")
    weights.pop("lm_head.weight", None)
    heads = {"value_head.weight": draw(values)}
    if has_prompt_head:
        heads["prompt_head.weight"] = draw(values // 2)
    save_file({**weights, **heads}, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)
    double = {head: weight.astype(np.float64) for head, weight in heads.items()}
    outputs = lambda ids: np.concatenate([head @ family.last_hidden(ids) for head in double.values()])
    sequences = [family.draw(generator, length) for length in (1, 7, 90)]
    golden = {
        "sequences": sequences,
        "numbers": [outputs(ids).tolist() for ids in sequences],
        "texts": golden_texts(family, double["value_head.weight"], double.get("prompt_head.weight")),
    }
    write(directory / "golden.json", golden)


# --- Judges


def pair_preference(family, messages, first, second):
    """The token ids of RLHFlow's form, and the tokens of A and B."""
    context = family.tokenizer.apply_chat_template(
        messages, tokenize=False, chat_template=CONTEXT_TEMPLATE
    )
    content = PAIR.format(context=context, first=first, second=second)
    text = family.tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    labels = [[family.tokenizer.encode(label, add_special_tokens=False)[0]] for label in "AB"]
    return family.ids(text.replace(family.tokenizer.bos_token, "")), labels


def conversation(messages):
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in messages)


def chat(family, messages, first, second):
    """The token ids of a question in a chat, and the tokens of each label after nothing, a space or a line, in
    letters of either case."""
    question = jinja2.Template((FIXTURES / "judge/question.jinja").read_text()).render(
        conversation=conversation(messages),
        first=first,
        second=second,
        label_first="A",
        label_second="B",
    )
    text = family.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    labels = []
    for label in "AB":
        last = [family.ids(before + form)[-1] for form in (label, label.lower()) for before in ("", " ", "\n")]
        spelled = [token for token in last if family.tokenizer.decode([token]).strip().upper() == label]
        labels.append(list(dict.fromkeys(spelled)))
    return family.ids(text), labels


def judged(family, form):
    """P(first is better) of each ordered pair, the labels' probability, and the mean over both orders."""
    cases = []
    for messages, answers in CASES:
        size = len(answers)
        shown = [[0.5] * size for _ in answers]
        least = 1.0
        for i, first in enumerate(answers):
            for j, second in enumerate(answers):
                if first == second:
                    continue
                ids, labels = form(family, messages, first, second)
                probs = family.next_probs(ids)
                first_mass, second_mass = (float(probs[tokens].sum()) for tokens in labels)
                shown[i][j] = first_mass / (first_mass + second_mass)
                least = min(least, first_mass + second_mass)
        mean = [[(shown[i][j] + 1 - shown[j][i]) / 2 for j in range(size)] for i in range(size)]
        cases.append(
            {
                "messages": messages,
                "answers": answers,
                "first_ids": form(family, messages, answers[0], answers[1])[0],
                "shown_first": shown,
                "probability": mean,
                "least_label_probability": least,
            }
        )
    return cases


def make_judge(name, family, generator):
    beginning = family.draw(generator, 30)
    sequences = [
        beginning + family.draw(generator, 5),
        beginning + family.draw(generator, 60),
        beginning[:20],
        family.draw(generator, 1),
    ]
    tokens = [5, 17, 99]
    golden = {
        "sequences": sequences,
        "tokens": tokens,
        "log_probs": [np.log(family.next_probs(ids)[tokens]).tolist() for ids in sequences],
        "pair_preference": judged(family, pair_preference),
        "chat": judged(family, chat),
    }
    write(FIXTURES / "judge" / f"{name}.json", golden)


def main():
    for number, name in enumerate(FAMILIES):
        generator = np.random.default_rng(20 + number)
        family = Family(name)
        make_general_preference(name, family, generator)
        make_judge(name, family, generator)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Makes tests/fixtures/objectives.json: targets with the measures and baselines of `sppo_core::target`, and
values and derivatives of the objectives of earlier policies, against which both are tested.

Written from the papers, apart from the Rust code: GPO (arXiv 2410.02197), INPO (arXiv 2407.00617), MNPO (arXiv
2509.23102, whose released trainer has the same loss). Derivatives are complex steps, exact to rounding. It needs
Python alone. Run it without arguments.
"""

import json
import math
import pathlib
import random

generator = random.Random(20261130)


def probabilities(size, biased):
    """Random preferences, complementary or with a position bias."""
    table = [[round(generator.uniform(0.02, 0.98), 4) for _ in range(size)] for _ in range(size)]
    for i in range(size):
        table[i][i] = 0.5
        for j in range(i):
            if not biased:
                table[i][j] = 1 - table[j][i]
    return table


def score(table, row, limit):
    def capped_logit(p):
        if p in (0.0, 1.0):
            return math.copysign(limit, p - 0.5)
        return max(-limit, min(limit, math.log(p) - math.log1p(-p)))

    both_orders = [(p + 1 - table[column][row]) / 2 for column, p in enumerate(table[row])]
    return math.fsum(map(capped_logit, both_orders)) / len(table)


def target_case(size, measure, baseline, eta, limit=10.0, certain=False, biased=False):
    table = probabilities(size, biased)
    if certain:
        table[0][1], table[1][0] = 1.0, 0.0
    if measure == "win_rate":
        values, neutral = [math.fsum(row) / size for row in table], 0.5
    else:
        values, neutral = [score(table, row, limit) for row in range(size)], 0.0
    if baseline == "half":
        targets = [eta * (value - neutral) for value in values]
    else:
        # log(pi_{t+1} / pi_t) = log(exp(eta r) / Z) of the exact update, Z estimated by the K responses.
        best = max(values)
        log_mean = math.log(math.fsum(math.exp(eta * (value - best)) for value in values) / size)
        targets = [eta * (value - best) - log_mean for value in values]
    return {
        "size": size,
        "probability": table,
        "measure": measure,
        "baseline": baseline,
        "score_limit": limit,
        "eta": eta,
        "targets": targets,
    }


def earlier_case(objective, eta, share, weights, history):
    """`history` policies are known: the current one, and those before it."""
    draw = lambda: generator.uniform(-90, -20)
    log_probs = [draw(), draw()]
    starting = [draw(), draw()]
    earlier = [[draw() for _ in range(history)] for _ in range(2)]
    # The papers' step size is the inverse of ours.
    step = 1 / eta
    total = sum(weights[:history])

    def loss(chosen, rejected):
        logits = (chosen - rejected) - share * (starting[0] - starting[1])
        for j in range(history):
            logits -= (1 - share) * weights[j] / total * (earlier[0][j] - earlier[1][j])
        return (logits - 1 / (2 * step)) ** 2

    tiny = 1e-30
    return {
        "objective": objective,
        "eta": eta,
        "reference_share": share,
        "weights": weights,
        "responses": [
            {
                "log_prob": log_probs[side],
                "starting_log_prob": starting[side],
                "earlier_log_probs": earlier[side],
            }
            for side in range(2)
        ],
        "loss": loss(*log_probs),
        "derivative": [
            loss(log_probs[0] + tiny * 1j, log_probs[1]).imag / tiny,
            loss(log_probs[0], log_probs[1] + tiny * 1j).imag / tiny,
        ],
    }


cases = {
    "targets": [
        target_case(5, "win_rate", "half", 1000.0),
        target_case(5, "win_rate", "log_partition", 1000.0, biased=True),
        target_case(3, "win_rate", "log_partition", 2.5),
        target_case(5, "score", "half", 1000.0, biased=True),
        target_case(4, "score", "half", 10.0, certain=True),
        target_case(5, "score", "log_partition", 30.0, limit=3.0, certain=True),
        target_case(2, "score", "log_partition", 0.5),
    ],
    "earlier_policies": [
        earlier_case("inpo", 1 / 0.0075, 1 / 3, [1.0], 1),
        earlier_case("inpo", 10.0, 0.0, [1.0], 1),
        earlier_case("mnpo", 1 / 0.0075, 1 / 3, [1.0, 1.0], 2),
        earlier_case("mnpo", 1 / 0.0075, 1 / 3, [1.0, 1.0], 1),
        earlier_case("mnpo", 50.0, 0.8, [0.6, 0.3, 0.1], 3),
    ],
}
output = pathlib.Path(__file__).parents[1] / "fixtures" / "objectives.json"
output.write_text(json.dumps(cases, indent=1) + "\n")

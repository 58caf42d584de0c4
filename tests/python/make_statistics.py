#!/usr/bin/env python3
"""Makes tests/fixtures/statistics.json: logistic regressions, length-controlled win rates and
Bradley-Terry strengths of random data, against which `sppo_core::statistics` is tested.

Unpenalised fits are statsmodels' (GLM, binomial). Penalised ones are minima found by scipy, which agree
with statsmodels' `fit_regularized` where that can express them.

Made with numpy 2.4.6, scipy 1.17.1 and statsmodels 0.15.0. Run it without arguments.
"""

import json
import pathlib
import warnings

import numpy as np
import statsmodels.api as sm
from scipy.optimize import minimize, root
from scipy.special import expit, log_expit

LENGTH_PENALTY = 0.01
generator = np.random.default_rng(20261130)


def penalised_fit(features, labels, weights, penalties):

    def loss(b):
        odds = features @ b
        terms = labels * log_expit(odds) + (1 - labels) * log_expit(-odds)
        return -(weights * terms).sum() + 0.5 * (penalties * b * b).sum()

    def gradient(b):
        return features.T @ (weights * (expit(features @ b) - labels)) + penalties * b

    def hessian(b):
        odds = features @ b
        curvature = weights * expit(odds) * expit(-odds)
        return features.T @ (curvature[:, None] * features) + np.diag(penalties)

    start = np.full(features.shape[1], 0.1)
    near = minimize(loss, start, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-5})
    found = root(gradient, near.x, jac=hessian, options={"xtol": 1e-14})
    assert np.abs(gradient(found.x)).max() < 1e-9, found
    return found.x


def glm(features, labels, weights):
    # Probabilities as labels are meant here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sm.GLM(labels, features, family=sm.families.Binomial(), var_weights=weights)
        fit = model.fit(tol=1e-14, maxiter=200)
    assert np.allclose(penalised_fit(features, labels, weights, np.zeros(features.shape[1])), fit.params, atol=1e-7)
    return fit.params


def logistic_case(rows, columns, weighted):
    features = np.column_stack([np.ones(rows), generator.normal(size=(rows, columns - 1))]).round(4)
    truth = generator.normal(size=columns)
    labels = expit(features @ truth + generator.normal(size=rows)).round(4)
    weights = generator.integers(1, 5, rows) / 2.0 if weighted else np.ones(rows)
    return {
        "features": features.tolist(),
        "labels": labels.tolist(),
        "weights": weights.tolist(),
        "coefficients": glm(features, labels, weights).tolist(),
    }


def length_case(name, prompts, samples, label):
    differences = np.round(generator.normal(40, 160, size=(prompts, samples)))
    labels = label(differences, generator)
    flat = differences.ravel()
    column = np.tanh(flat / flat.std(ddof=1))
    features = np.column_stack([np.ones(flat.size), column])
    weights = np.full(flat.size, 1.0 / samples)
    penalties = np.array([0.0, LENGTH_PENALTY])
    fit = penalised_fit(features, labels.ravel(), weights, penalties)
    if samples == 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = sm.GLM(labels.ravel(), features, family=sm.families.Binomial())
            other = model.fit_regularized(
                alpha=penalties / flat.size, L1_wt=0.0, maxiter=10000, cnvrg_tol=1e-13, zero_tol=1e-14
            )
        # Its coordinate descent is slow where length decides.
        tolerance = 1e-3 if label is longer_wins else 1e-6
        assert np.allclose(expit(fit[0]), expit(other.params[0]), atol=tolerance), (name, fit, other.params)
    duels = np.stack([labels, differences], axis=-1)
    return {"name": name, "duels": duels.tolist(), "win_rate": float(expit(fit[0]))}


def soft(differences, generator):
    return expit(0.3 + 0.004 * differences + generator.normal(size=differences.shape)).round(4)


def hard(differences, generator):
    return (generator.random(differences.shape) < expit(0.3 + 0.004 * differences)).astype(float)


def longer_wins(differences, generator):
    return (differences > 20).astype(float)


def ranking_case(name, models, penalty, decided=None):
    strengths = generator.normal(size=models)
    wins = np.zeros((models, models))
    for first in range(models):
        for second in range(first + 1, models):
            games = int(generator.integers(5, 60))
            won = generator.binomial(games, expit(strengths[first] - strengths[second])) + 0.25
            won = games if first == decided else min(won, games)
            wins[first, second], wins[second, first] = won, games - won
    rows, labels, weights = [], [], []
    for first in range(models):
        for second in range(models):
            row = np.zeros(models)
            row[first], row[second] = 1.0, -1.0
            if wins[first, second] > 0:
                rows.append(row)
                labels.append(1.0)
                weights.append(wins[first, second])
    rows, labels, weights = np.array(rows), np.array(labels), np.array(weights)
    if penalty:
        fit = penalised_fit(rows, labels, weights, np.full(models, penalty))
    else:
        # The first model is the reference; each game is one row with a label in [0, 1].
        pairs = [(i, j) for i in range(models) for j in range(i + 1, models)]
        features = np.zeros((len(pairs), models))
        for index, (first, second) in enumerate(pairs):
            features[index, first], features[index, second] = 1.0, -1.0
        games = np.array([wins[i, j] + wins[j, i] for i, j in pairs])
        shares = np.array([wins[i, j] for i, j in pairs]) / games
        fit = np.concatenate([[0.0], glm(features[:, 1:], shares, games)])
    return {"name": name, "wins": wins.tolist(), "penalty": penalty, "strengths": (fit - fit.mean()).tolist()}


cases = {
    "logistic": [logistic_case(30, 2, False), logistic_case(60, 4, True)],
    "length_controlled": [
        length_case("probabilities", 40, 1, soft),
        length_case("verdicts", 120, 1, hard),
        length_case("several answers", 25, 3, soft),
        length_case("few prompts", 6, 1, soft),
        length_case("length decides", 30, 1, longer_wins),
    ],
    "bradley_terry": [
        ranking_case("two models", 2, 0.01),
        ranking_case("eight models", 8, 0.01),
        ranking_case("one wins everything", 4, 0.01, decided=1),
        ranking_case("without penalty", 6, 0.0),
    ],
}
target = pathlib.Path(__file__).parents[1] / "fixtures" / "statistics.json"
target.write_text(json.dumps(cases) + "\n")

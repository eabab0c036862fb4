from __future__ import annotations

import numpy as np
import pytest

from tallystick.definitions.model import Gate, Model
from tallystick.model_bundle.evaluation_metrics import scores
from tallystick_training.gates import apply_gates

ROWS = 4_000


def model_with(*gates):
    return Model.model_construct(name="demo", gates=gates)


@pytest.fixture
def truth():
    rng = np.random.default_rng(5)
    p = rng.uniform(0.05, 0.95, ROWS)
    return p, (rng.random(ROWS) < p).astype(float)


def spoiled(p, strength):
    return np.clip(p + strength * np.random.default_rng(1).normal(size=len(p)), 0.02, 0.98)


def test_the_same_predictions_pass_without_any_allowance(truth):
    p, y = truth
    gates = [
        Gate(metric=metric, max_regression=0.0, per_slice=True)
        for metric in ("log_loss", "brier", "auc", "ece")
    ]
    slices = {"half": np.repeat(["a", "b"], ROWS // 2)}
    results = apply_gates(model_with(*gates), y, p, p, slices)
    assert {result.where for result in results} == {"all", "half=a", "half=b"}
    assert len(results) == 12
    assert all(result.passed for result in results)


def test_a_worse_challenger_fails_and_the_numbers_are_recorded(truth):
    p, y = truth
    worse = spoiled(p, 0.2)
    (result,) = apply_gates(
        model_with(Gate(metric="log_loss", max_regression=0.0)), y, p, worse, {}
    )
    assert not result.passed
    assert result.champion == scores(y, p)["log_loss"]
    assert result.challenger == scores(y, worse)["log_loss"]


def test_auc_is_better_when_larger(truth):
    p, y = truth
    gate = model_with(Gate(metric="auc", max_regression=0.0))
    assert not apply_gates(gate, y, p, spoiled(p, 0.4), {})[0].passed
    assert apply_gates(gate, y, spoiled(p, 0.4), p, {})[0].passed


def test_an_allowance_is_used_up_exactly(truth):
    p, y = truth
    worse = spoiled(p, 0.2)
    gap = scores(y, worse)["log_loss"] - scores(y, p)["log_loss"]
    for allowance, passed in ((gap * 1.001, True), (gap * 0.999, False)):
        gate = Gate(metric="log_loss", max_regression=allowance)
        assert apply_gates(model_with(gate), y, p, worse, {})[0].passed is passed


def test_without_a_champion_only_limits_apply(truth):
    p, y = truth
    gates = (
        Gate(metric="log_loss", max_regression=0.0),
        Gate(metric="auc", limit=0.6, max_regression=0.0),
        Gate(metric="brier", limit=0.01),
    )
    results = apply_gates(model_with(*gates), y, None, p, {})
    assert [(result.gate.split()[0], result.passed) for result in results] == [
        ("auc", True),
        ("brier", False),
    ]
    assert all(result.champion is None for result in results)


def test_a_slice_that_really_got_worse_blocks_a_better_challenger(truth):
    p, y = truth
    values = np.repeat(["a", "b", "c", "d"], ROWS // 4)
    champion = spoiled(p, 0.2)
    challenger = np.where(values == "d", spoiled(p, 0.3), p)
    gate = model_with(Gate(metric="log_loss", max_regression=0.0, per_slice=True))
    failed = [
        result.where
        for result in apply_gates(gate, y, champion, challenger, {"part": values})
        if not result.passed
    ]
    assert failed == ["part=d"]


def test_noise_in_small_slices_does_not_block():
    # Two models that are equally good, many times over: nearly none of the trials may fail.
    rng = np.random.default_rng(11)
    gate = model_with(Gate(metric="log_loss", max_regression=0.0, per_slice=True))
    values = np.array([f"s{number:02}" for number in range(20)]).repeat(200)
    blocked = naive = 0
    for _ in range(40):
        p = rng.uniform(0.1, 0.9, ROWS)
        y = (rng.random(ROWS) < p).astype(float)
        one, other = (np.clip(p + 0.05 * rng.normal(size=ROWS), 0.02, 0.98) for _ in range(2))
        results = apply_gates(gate, y, one, other, {"slice": values})[1:]
        blocked += any(not result.passed for result in results)
        naive += any(result.challenger > result.champion for result in results)
    assert naive == 40
    assert blocked <= 6


def test_slices_with_few_rows_are_left_out(truth):
    p, y = truth
    values = np.array(["rare"] * 199 + ["common"] * (ROWS - 199))
    gate = model_with(Gate(metric="log_loss", limit=5.0, per_slice=True))
    parts = [result.where for result in apply_gates(gate, y, p, p, {"slice": values})]
    assert parts == ["all", "slice=common"]


def test_a_bootstrapped_gate_says_the_same_each_time(truth):
    p, y = truth
    values = np.repeat(["a", "b"], ROWS // 2)
    gate = model_with(Gate(metric="auc", max_regression=0.0, per_slice=True))
    first = apply_gates(gate, y, p, spoiled(p, 0.05), {"half": values})
    assert first == apply_gates(gate, y, p, spoiled(p, 0.05), {"half": values})

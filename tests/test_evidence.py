"""The laws that the benchmarks draw beside their measurements, and how they read curves."""

import math

import greedy_learning
import pytest
import rank_fixed_point
import rank_window
import torch

from lightning_rank.functional import variance_cutoff


@pytest.mark.parametrize("depth", [1, 8])
def test_gains_grow_as_the_law_of_deep_linear_networks_says(depth):
    rows = greedy_learning.train(greedy_learning.ALIGNED, depth, seed=3, steps=1200)
    largest = [row for row in rows if row["variance"] == 1]
    assert max(row["gain"] for row in largest) > 0.9, "there is something to predict"
    for row in rows:
        assert row["gain"] == pytest.approx(row["predicted_gain"], abs=0.02)
        assert row["latent"] == pytest.approx(row["predicted_latent"], abs=0.02)


@pytest.mark.parametrize("depth", [0, 2, 8])
def test_at_the_rest_point_decay_and_reconstruction_balance(depth):
    decay, factors = 0.01, depth + 2
    variances = torch.tensor([0.9, 1.1, 10, 100], dtype=torch.float64) * variance_cutoff(decay, depth)
    cut, *gains = rank_fixed_point.rest_point(variances, decay, depth)
    assert cut == 0
    for variance, gain in zip(variances[1:], gains, strict=True):
        p = gain.clone().requires_grad_()
        cost = variance * (1 - p).square() + decay * factors / 2 * p ** (2 / factors)
        (slope,) = torch.autograd.grad(cost, p)
        assert slope == pytest.approx(0, abs=1e-9)
        assert gain > 0.05


def test_the_window_is_the_longest_time_at_the_rank_of_the_data():
    assert rank_window.window({"rank": 4, "ranks": [3, 4, 5, 4, 4, 4, 7, 7]}) == (400, 600)
    assert rank_window.window({"rank": 4, "ranks": [3, 4, 5, 6, 4, 4]}) == (500, math.inf)
    assert rank_window.window({"rank": 4, "ranks": [3, 5, 5]}) == (math.inf, math.inf)


def test_where_the_stopping_rule_stops():
    still = [1.0] * 8
    assert rank_window.stopped({"ranks": [2, 3, 4, 4, 4, 4, 4, 9], "errors": still}) == 4
    assert rank_window.stopped({"ranks": [2, 3, 4, 4, 4, 4, 5, 9], "errors": still}) is None
    assert rank_window.stopped({"ranks": [32] * 8, "errors": still}) is None, "full width"
    falling = [0.99**step for step in range(8)]
    assert rank_window.stopped({"ranks": [4] * 8, "errors": falling}) is None

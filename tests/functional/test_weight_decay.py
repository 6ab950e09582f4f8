"""The threshold of coupled weight decay."""

import math

import pytest
import torch

from lightning_rank.functional import variance_cutoff, weight_decay_for_variance_cutoff


@pytest.mark.parametrize(("depth", "ratio"), [(0, 0.5), (2, 1.30), (4, 1.54), (8, 1.72), (16, 1.84)])
def test_known_ratios_of_cutoff_to_decay(depth, ratio):
    assert variance_cutoff(1.0, depth) == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize("depth", [0, 1, 4, 32])
def test_each_is_the_inverse_of_the_other(depth):
    assert variance_cutoff(weight_decay_for_variance_cutoff(0.3, depth), depth) == pytest.approx(0.3)


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_a_rest_point_appears_exactly_above_the_cutoff(depth):
    decay = 0.01
    factors, p = depth + 2, torch.linspace(1e-6, 1, 200001, dtype=torch.float64)
    for variance, survives in ((0.99, False), (1.01, True)):
        variance *= variance_cutoff(decay, depth)
        slope = -2 * variance * (1 - p) + decay * p ** (2 / factors - 1)
        assert (slope < 0).any().item() is survives


def test_bad_arguments_are_refused():
    for function, name in ((variance_cutoff, "weight_decay"), (weight_decay_for_variance_cutoff, "cutoff")):
        for bad in (-1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"{name}: expected a non-negative finite number, got"):
                function(bad, 4)
        with pytest.raises(ValueError, match="depth: expected 0 or more, got -1"):
            function(1.0, -1)
        with pytest.raises(TypeError, match="depth: expected an int, got float"):
            function(1.0, 4.0)

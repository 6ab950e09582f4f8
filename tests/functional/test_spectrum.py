"""What is read off spectra beside ranks, against NumPy and against what was published."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_rank.functional import (
    condition_number,
    directions_for_variance,
    effective_rank,
    merge_moments,
    power_law_exponent,
    principal_deviations,
    rankme,
    row_moments,
    uncentred_deviations,
)
from lightning_rank.metrics import ConditionNumber, DirectionsForVariance, PowerLawExponent, RankMe

spectra = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=12).map(lambda values: torch.tensor(values).double())


def published_rankme(latents, epsilon=1e-7):
    """As the paper has it: singular values of the latents, not centred, over their sum, and epsilon."""
    values = np.linalg.svd(latents, compute_uv=False)
    p = values / np.abs(values).sum() + epsilon
    return np.exp(-(p * np.log(p)).sum())


@pytest.mark.parametrize("shape", [(200, 12), (8, 12)])
@pytest.mark.parametrize("offset", [0.0, 1.0, 20.0])
def test_rankme_is_the_published_number(shape, offset):
    latents = torch.randn(shape, dtype=torch.float64) * torch.linspace(1, 0.1, 12) + offset
    metric = RankMe(12)
    for batch in latents.split(7):
        metric.update(batch)
    assert metric.compute().item() == pytest.approx(published_rankme(latents.numpy()), rel=1e-5)
    moments = merge_moments(row_moments(latents[:3]), row_moments(latents[3:]))
    values = uncentred_deviations(moments)[: min(shape)]
    np.testing.assert_allclose(values * shape[0] ** 0.5, np.linalg.svd(latents, compute_uv=False), rtol=1e-6, atol=1e-6)


def test_rankme_and_the_effective_rank_differ_by_the_mean_and_by_epsilon():
    latents = torch.randn(5000, 10, dtype=torch.float64)
    latents -= latents.mean(0)
    centred = row_moments(latents)
    assert rankme(uncentred_deviations(centred), epsilon=0).item() == pytest.approx(
        effective_rank(principal_deviations(centred)).item()
    )
    moved = row_moments(latents + 20)
    assert effective_rank(principal_deviations(moved)).item() == pytest.approx(10, rel=0.01)
    assert rankme(uncentred_deviations(moved)).item() < 5
    padded = torch.cat([torch.ones(10), torch.zeros(502)])
    assert effective_rank(padded).item() == pytest.approx(10, rel=1e-6)
    assert 10.0005 < rankme(padded).item() < 10.02, "epsilon in 502 directions that are not there"


@given(spectra, st.floats(0.01, 1))
def test_directions_for_variance_are_the_fewest_that_hold_it(values, share):
    variances = np.sort(values.numpy() ** 2)[::-1]
    found = directions_for_variance(values, share=share).item()
    total = variances.sum()
    assert variances[:found].sum() >= share * total * (1 - 1e-9)
    assert found == 1 or variances[: found - 1].sum() < share * total * (1 + 1e-9)


def test_directions_for_variance_of_what_has_none_and_of_batches():
    assert directions_for_variance(torch.zeros(3)).item() == 0
    assert directions_for_variance(torch.full((3,), torch.nan)).item() == 0
    batch = torch.tensor([[1.0, 1.0, 1.0, 1.0], [10.0, 1.0, 0.0, 0.0]])
    assert directions_for_variance(batch, share=0.75).tolist() == [3, 1]
    assert directions_for_variance(batch, share=1.0).tolist() == [4, 2]
    for bad in (0, 1.1, -1):
        with pytest.raises(ValueError, match=r"share: expected a number in \(0, 1\]"):
            directions_for_variance(batch, share=bad)


@given(spectra, st.floats(1e-3, 1e3))
def test_the_power_law_is_the_weighted_line_of_numpy_whatever_the_scale(values, scale):
    ordered = np.sort(values.numpy())[::-1]
    k = np.arange(1, len(ordered) + 1)
    # polyfit's weights multiply the residuals, not their squares.
    slope, _ = np.polyfit(np.log(k), np.log(ordered**2), 1, w=k**-0.5)
    assert power_law_exponent(values * scale).item() == pytest.approx(-slope, rel=1e-6, abs=1e-7)


def test_the_power_law_of_a_range_and_of_what_cannot_be_fitted():
    k = torch.arange(1, 201, dtype=torch.float64)
    values = k**-0.5
    values[:3], values[150:] = 100.0, 1e-9
    assert power_law_exponent(values, first=4, last=100).item() == pytest.approx(1.0)
    assert power_law_exponent(values, first=4).item() > 1.5
    assert power_law_exponent(values, last=100).item() > 1.1
    assert power_law_exponent(torch.cat([k**-1.0, torch.zeros(50)])).item() == pytest.approx(2.0)
    for spectrum in (torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3), torch.full((3,), torch.nan)):
        assert power_law_exponent(spectrum).isnan()
    with pytest.raises(ValueError, match="first, last: expected 1 <= first < last, got 4 and 4"):
        power_law_exponent(values, first=4, last=4)


def test_the_condition_is_that_of_numpy_and_infinite_without_a_smallest():
    matrix = torch.randn(7, 5, dtype=torch.float64)
    assert condition_number(torch.linalg.svdvals(matrix)).item() == pytest.approx(np.linalg.cond(matrix.numpy()))
    assert condition_number(torch.tensor([1.0, 0.0])).isinf()
    assert condition_number(torch.tensor([[4.0, 2.0], [3.0, 3.0]])).tolist() == [2, 1]


def test_the_metrics_are_the_functions_of_the_whole_split():
    latents = torch.randn(300, 6) * torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.1]) + 3
    moments = row_moments(latents)
    deviations = principal_deviations(moments)
    expected = {
        DirectionsForVariance(6, share=0.9): directions_for_variance(deviations, share=0.9),
        PowerLawExponent(6, first=2): power_law_exponent(deviations, first=2),
        ConditionNumber(6): condition_number(deviations),
        RankMe(6): rankme(uncentred_deviations(moments)),
    }
    for metric, value in expected.items():
        for batch in latents.split(70):
            metric.update(batch)
        assert metric.compute().item() == pytest.approx(value.item(), rel=1e-9)
    with pytest.raises(ValueError, match="share: expected"):
        DirectionsForVariance(6, share=2)
    with pytest.raises(ValueError, match="first, last: expected"):
        PowerLawExponent(6, first=0)

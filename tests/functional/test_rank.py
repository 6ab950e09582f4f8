"""Laws of the ranks, and what they refuse."""

import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_rank.functional import (
    effective_rank,
    numerical_rank,
    participation_ratio,
    spectral_gap,
    stable_rank,
)

REAL = [effective_rank, stable_rank, participation_ratio]
COUNTS = [numerical_rank, spectral_gap]
spectra = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40).map(lambda v: torch.tensor(v, dtype=torch.float64))


@pytest.mark.parametrize("rank", REAL + COUNTS)
@pytest.mark.parametrize(("equal", "zeros"), [(1, 0), (1, 7), (5, 3), (8, 0)])
def test_rank_is_exact_on_equal_spectra(rank, equal, zeros):
    spectrum = torch.cat([torch.full((equal,), 0.37), torch.zeros(zeros)]).double()
    torch.testing.assert_close(rank(spectrum).double(), torch.tensor(float(equal), dtype=torch.float64))


@pytest.mark.parametrize("rank", REAL + COUNTS)
@given(spectrum=spectra)
def test_rank_lies_between_one_and_the_width(rank, spectrum):
    assert 1 - 1e-9 <= rank(spectrum).item() <= len(spectrum) + 1e-9


@pytest.mark.parametrize("rank", REAL + COUNTS)
@given(spectrum=spectra, exponent=st.integers(-200, 200))
def test_rank_does_not_change_with_scale(rank, spectrum, exponent):
    torch.testing.assert_close(rank(spectrum * 2.0**exponent), rank(spectrum))


@pytest.mark.parametrize("rank", REAL + COUNTS)
@given(spectrum=spectra, seed=st.integers(0, 99))
def test_rank_does_not_change_with_order(rank, spectrum, seed):
    shuffled = spectrum[torch.randperm(len(spectrum), generator=torch.Generator().manual_seed(seed))]
    torch.testing.assert_close(rank(shuffled), rank(spectrum))


@given(spectrum=spectra)
def test_effective_rank_agrees_with_numpy(spectrum):
    assert effective_rank(spectrum).item() == pytest.approx(reference.effective_rank(spectrum.numpy()), rel=1e-12)


def test_values_worked_out_by_hand():
    spectrum = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    assert effective_rank(spectrum).item() == pytest.approx(math.exp(0.5 * math.log(2) + 2 * 0.25 * math.log(4)))
    assert stable_rank(spectrum).item() == 1.5
    assert participation_ratio(spectrum).item() == pytest.approx(36 / 18)
    assert spectral_gap(spectrum).item() == 1
    assert numerical_rank(spectrum, variance_rtol=0.25).item() == 1
    assert numerical_rank(spectrum, variance_rtol=0.2499).item() == 3


def test_numerical_rank_compares_variances_not_singular_values():
    spectrum = torch.tensor([1.0, 0.04, 0.03], dtype=torch.float64)  # variances 1, 1.6e-3, 9e-4
    assert numerical_rank(spectrum).item() == 2


def test_gap_into_rounding_counts_once_and_gaps_inside_it_never():
    assert spectral_gap(torch.tensor([1.0, 0.9, 0.8, 1e-9, 0.0])).item() == 3
    assert spectral_gap(torch.tensor([1.0, 1e-3, 9e-4, 0.0, 0.0], dtype=torch.float64)).item() == 3


def test_what_is_rounding_can_be_said():
    clipped = torch.tensor([1.0, 0.9, 1e-5, 9e-6, 0.0], dtype=torch.float64)
    assert spectral_gap(clipped, rtol=5e-8).item() == 2
    assert spectral_gap(clipped).item() == 4
    with pytest.raises(ValueError, match=r"rtol: expected a number in \(0, 1\), got 0"):
        spectral_gap(clipped, rtol=0)


@pytest.mark.parametrize("rank", REAL + COUNTS)
def test_zero_spectrum_has_rank_zero(rank):
    assert rank(torch.zeros(5)).item() == 0


@pytest.mark.parametrize("rank", REAL)
def test_nan_in_gives_nan_out(rank):
    assert rank(torch.tensor([1.0, math.nan])).isnan()


@pytest.mark.parametrize("rank", REAL + COUNTS)
def test_leading_axes_are_a_batch(rank):
    spectra = torch.rand(3, 4, 6)
    one_by_one = torch.stack([rank(row) for row in spectra.flatten(0, 1)]).unflatten(0, (3, 4))
    torch.testing.assert_close(rank(spectra), one_by_one)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    spectrum = torch.ones(2000, dtype=dtype)
    assert effective_rank(spectrum).item() == pytest.approx(2000, rel=1e-5)
    assert effective_rank(spectrum).dtype == torch.float32


def test_tiny_values_do_not_underflow_when_squared():
    assert participation_ratio(torch.tensor([1e-30, 1e-30])).item() == pytest.approx(2)


@pytest.mark.parametrize("rank", REAL + COUNTS)
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.ones(3, dtype=torch.int64), TypeError, "singular_values: expected a real floating-point.*int64"),
        (torch.ones(3, dtype=torch.complex64), TypeError, "singular_values: expected a real.*complex64"),
        (np.ones(3), TypeError, "singular_values: expected a real floating-point tensor, got ndarray"),
        (torch.tensor(1.0), ValueError, r"singular_values: expected shape \(\.\.\., K\)"),
        (torch.ones(3, 0), ValueError, r"singular_values: expected shape .* got \(3, 0\)"),
        (torch.tensor([1.0, -0.5]), ValueError, "singular_values: expected non-negative values, .* -0.5"),
    ],
)
def test_bad_spectra_are_refused(rank, bad, error, message):
    with pytest.raises(error, match=message):
        rank(bad)


@pytest.mark.parametrize("rtol", [-0.1, 1, 2, math.nan])
def test_bad_thresholds_are_refused(rtol):
    with pytest.raises(ValueError, match="variance_rtol: expected a number in"):
        numerical_rank(torch.ones(3), variance_rtol=rtol)


def test_a_singular_value_of_zero_leaves_the_others_their_gradients():
    """Of a layer with dead units the effective rank can be trained."""
    values = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    effective_rank(values).backward()
    alone = torch.tensor([2.0, 1.0], dtype=torch.float64, requires_grad=True)
    effective_rank(alone).backward()
    torch.testing.assert_close(values.grad[:2], alone.grad)
    assert values.grad.isfinite().all()
    nothing = torch.zeros(2, requires_grad=True)
    effective_rank(nothing).backward()
    assert nothing.grad.tolist() == [0.0, 0.0]

"""Moments merge exactly, and lose no digits to an offset."""

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_rank.functional import Moments, merge_moments, principal_deviations, principal_directions, row_moments
from lightning_rank.functional.moments import mirror_upper, pool_moments, upper_strips


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6), dim=st.integers(1, 40), seed=st.integers(0, 99))
def test_shards_equal_the_whole(sizes, dim, seed):
    rows = torch.randn(sum(sizes), dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 3
    merged = row_moments(rows[:0])
    for shard in rows.split(sizes):
        merged = merge_moments(merged, row_moments(shard))
    for ours, whole in zip(merged, row_moments(rows), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shards", [1, 2, 8, 64])
def test_pooled_shards_equal_the_whole(shards):
    rows = torch.randn(5000, 24, dtype=torch.float64) * torch.linspace(1, 0.01, 24) + 100
    parts = [row_moments(shard) for shard in rows.tensor_split(shards)] + [row_moments(rows[:0])]
    n, mean, scatter = (torch.stack(part) for part in zip(*parts, strict=True))
    pooled = pool_moments(n, mean, scatter.sum(0))
    torch.testing.assert_close(
        principal_deviations(pooled), principal_deviations(row_moments(rows)), rtol=3e-12, atol=0
    )
    assert pooled.n == 5000
    torch.testing.assert_close(pooled.mean, rows.mean(0), rtol=1e-14, atol=0)


@given(n=st.integers(2, 60), dim=st.integers(1, 50), seed=st.integers(0, 99))
def test_moments_agree_with_numpy(n, dim, seed):
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    count, mean, scatter = row_moments(rows)
    exact = rows.double().numpy()
    assert count.item() == n
    np.testing.assert_allclose(mean.numpy(), exact.mean(0), rtol=0, atol=1e-14)
    np.testing.assert_allclose(
        scatter.numpy(), np.cov(exact, rowvar=False, bias=True).reshape(dim, dim) * n, atol=1e-11
    )
    np.testing.assert_allclose(
        principal_deviations(Moments(count, mean, scatter)), reference.deviations(exact), atol=1e-7
    )


@pytest.mark.parametrize("rows", [1, 32, 1000, 5000])
@pytest.mark.parametrize("dim", [1, 64])
def test_equal_rows_have_no_deviation_though_their_sum_is_rounded(rows, dim):
    for row in torch.randn(10, dim, dtype=torch.float64) * torch.logspace(-9, 9, 10, dtype=torch.float64)[:, None]:
        merged = moments = row_moments(row.expand(rows, dim))
        for _ in range(3):
            merged = merge_moments(merged, moments)
        for found in (moments, merged):
            assert principal_deviations(found).tolist() == [0] * dim
            assert principal_directions(found)[0].tolist() == [0] * dim


def test_a_deviation_of_a_few_roundings_of_the_mean_is_one():
    row = torch.randn(64, dtype=torch.float64)
    rows = row + 1e-12 * torch.randn(4000, 64, dtype=torch.float64)
    deviations = principal_deviations(row_moments(rows))
    torch.testing.assert_close(deviations, torch.tensor(reference.deviations(rows.numpy())), rtol=1e-3, atol=0)


@pytest.mark.parametrize("offset", [0, 100, 1e4])
def test_small_singular_values_survive_an_offset(offset):
    scale = torch.logspace(0, -7, 16, dtype=torch.float64)
    rows = torch.randn(4000, 16, dtype=torch.float64)
    rows = torch.linalg.qr(rows - rows.mean(0)).Q * scale * 4000**0.5 + offset
    merged = row_moments(rows[:0])
    for chunk in rows.split(500):
        merged = merge_moments(merged, row_moments(chunk))
    tolerance = 1e-3 if offset <= 100 else 0.3  # the rows themselves are rounded to offset * 1e-16
    torch.testing.assert_close(principal_deviations(merged), scale, rtol=tolerance, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e200])
def test_bad_rows_are_left_out(bad):
    rows = torch.randn(20, 4, dtype=torch.float64)
    spoiled = torch.cat([rows[:7], torch.full((1, 4), bad, dtype=torch.float64), rows[7:]])
    spoiled[7, 1:] = 0
    for ours, clean in zip(row_moments(spoiled), row_moments(rows), strict=True):
        torch.testing.assert_close(ours, clean, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_overwritten_only_on_request(dtype):
    rows = torch.randn(40, 5, dtype=dtype) + 3
    kept = rows.clone()
    moments = row_moments(rows)
    assert torch.equal(rows, kept)
    for ours, theirs in zip(row_moments(kept.double(), overwrite=True), moments, strict=True):
        assert torch.equal(ours, theirs)


def test_long_rows_are_left_out_though_their_sum_is_finite():
    rows = torch.tensor([[3e150], [3e150], [1.0], [3.0]], dtype=torch.float64)
    assert [part.item() for part in row_moments(rows)] == [2, 2, 2]


@pytest.mark.parametrize("dim", [1, 31, 32, 33, 128, 300])
def test_strips_hold_the_upper_triangle(dim):
    matrix = torch.randn(dim, dim).triu()
    kept = torch.zeros(dim, dim)
    for strip, copy in zip(upper_strips(matrix), upper_strips(kept), strict=True):
        copy.copy_(strip)
    assert torch.equal(kept, matrix)
    assert sum(strip.numel() for strip in upper_strips(matrix)) <= dim * (dim + max(32, -(-dim // 8))) / 2 + 512
    symmetric = matrix + matrix.triu(1).T
    block = max(32, -(-dim // 8))
    within = torch.arange(dim) // block
    spoiled = torch.where(within[:, None] > within, torch.nan, symmetric)
    assert torch.equal(mirror_upper(spoiled), symmetric)


def test_rounding_reads_as_zero_and_no_rows_as_nan():
    rows = torch.randn(3000, 5, dtype=torch.float64) @ torch.randn(5, 40, dtype=torch.float64) + 7
    deviations = principal_deviations(row_moments(rows))
    assert (deviations[:5] > 0).all()
    assert (deviations[5:] == 0).all()
    assert principal_deviations(row_moments(rows[:0])).isnan().all()
    assert (principal_deviations(row_moments(rows[:1])) == 0).all()

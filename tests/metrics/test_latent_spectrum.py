"""The spectrum of a whole split, however it comes in."""

import copy
import pickle

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics import MetricCollection
from torchmetrics.wrappers import Running

from lightning_rank.metrics import (
    DirectionsForVariance,
    EffectiveRank,
    LatentSpectrum,
    NumericalRank,
    ParticipationRatio,
    PowerLawExponent,
    RankMe,
    StableRank,
)


def spectrum_of(*batches: torch.Tensor, **options) -> torch.Tensor:
    metric = LatentSpectrum(batches[0].shape[-1], **options)
    for batch in batches:
        metric.update(batch)
    return metric.compute()


def low_rank(n: int, dim: int, smallest: float, offset: float) -> torch.Tensor:
    """Rows with known standard deviations from 1 to ``smallest``, on random axes."""
    rows = torch.randn(n, dim, dtype=torch.float64)
    rows = (
        torch.linalg.qr(rows - rows.mean(0)).Q
        * n**0.5
        * torch.logspace(0, np.log10(smallest), dim, dtype=torch.float64)
    )
    return rows @ torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q + offset


@given(
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=8),
    dim=st.integers(2, 20),
    offset=st.sampled_from([0.0, 1.0, 100.0]),
    seed=st.integers(0, 9),
)
def test_batches_equal_the_whole_and_numpy(sizes, dim, offset, seed):
    rows = torch.randn(sum(sizes), dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offset
    ours = spectrum_of(*rows.split(sizes))
    assert (ours[:-1] >= ours[1:]).all()
    np.testing.assert_allclose(ours, reference.deviations(rows.numpy()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shards", [2, 3])
def test_merged_shards_equal_the_whole(shards):
    rows = torch.randn(5000, 24, dtype=torch.float64) * torch.linspace(1, 0.01, 24) + 100
    whole = LatentSpectrum(24)
    whole.update(rows)
    parts = [LatentSpectrum(24) for _ in range(shards)]
    for part, shard in zip(parts, rows.tensor_split(shards), strict=True):
        part.update(shard)
    merged = parts.pop(0)
    for part in parts:
        merged.merge_state(part)
    torch.testing.assert_close(merged.compute(), whole.compute(), rtol=1e-12, atol=0)
    assert merged.samples == 5000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_latents_that_do_not_vary_have_rank_zero(dtype):
    latents = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=dtype).expand(1000, 64)
    for metric in (EffectiveRank(64), NumericalRank(64)):
        for _ in range(3):
            metric.update(latents)
        assert metric.compute() == 0


@pytest.mark.parametrize("offset", [0, 1, 100])
@pytest.mark.parametrize("batch", [64, 1000])
def test_effective_rank_survives_a_mean_offset_of_a_hundred_deviations(offset, batch):
    rows = low_rank(8000, 32, 1e-7, offset)
    metric = EffectiveRank(32)
    for piece in rows.split(batch):
        metric.update(piece)
    assert metric.compute().item() == pytest.approx(
        reference.effective_rank(reference.deviations(rows.numpy())), rel=1e-6
    )
    float32 = EffectiveRank(32)
    float32.update(rows.float())
    exact = reference.effective_rank(reference.deviations(rows.float().numpy()))
    assert float32.compute().item() == pytest.approx(exact, rel=1e-5)


@given(seed=st.integers(0, 99), shift=st.floats(-50, 50), scale=st.floats(0.01, 100))
def test_effective_rank_does_not_change_with_rotation_shift_and_scale(seed, shift, scale):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(200, 8, generator=generator, dtype=torch.float64) * torch.rand(8, generator=generator)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    first, second = EffectiveRank(8), EffectiveRank(8)
    first.update(rows)
    second.update(rows @ rotation * scale + shift)
    assert second.compute().item() == pytest.approx(first.compute().item(), rel=1e-7)
    assert 1 <= first.compute() <= 8


@given(n=st.integers(2, 40), dim=st.integers(2, 30), seed=st.integers(0, 99), offset=st.sampled_from([0.0, 100.0]))
def test_every_rank_lies_between_one_and_what_rows_and_width_allow(n, dim, seed, offset):
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offset
    for metric in (EffectiveRank(dim), NumericalRank(dim), StableRank(dim), ParticipationRatio(dim)):
        metric.update(rows)
        # n rows, once centred, span n - 1 directions at most
        assert 1 - 1e-9 <= metric.compute() <= min(n - 1, dim) + 1e-6


def test_fewer_rows_than_features_and_degenerate_latents():
    rows = torch.randn(5, 40)
    deviations = spectrum_of(rows)
    np.testing.assert_allclose(deviations, reference.deviations(rows.numpy()), atol=1e-7)
    assert (deviations[4:] == 0).all()
    assert (spectrum_of(torch.randn(1, 6)) == 0).all()
    assert (spectrum_of(torch.full((50, 6), 3.3)) == 0).all()
    assert (spectrum_of(torch.zeros(50, 6)) == 0).all()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert LatentSpectrum(3).compute().isnan().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_bad_rows_are_dropped_and_counted(bad):
    rows = torch.randn(3000, 6)
    spoiled = rows.clone()
    spoiled[[4, 1500, 2999], [0, 3, 5]] = bad
    metric = LatentSpectrum(6)
    for batch in spoiled.split(100):
        metric.update(batch)
    good = rows[spoiled.isfinite().all(1)]
    torch.testing.assert_close(metric.compute(), spectrum_of(good), rtol=1e-12, atol=0)
    assert metric.dropped_rows == 3
    assert metric.samples == 2997


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_is_read_exactly(dtype):
    rows = (torch.randn(500, 6) + 2).to(dtype)
    np.testing.assert_allclose(spectrum_of(rows), reference.deviations(rows.double().numpy()), rtol=1e-9)


def test_every_position_is_a_row():
    tokens, image = torch.randn(4, 7, 5), torch.randn(4, 5, 3, 2)
    torch.testing.assert_close(spectrum_of(tokens), spectrum_of(tokens.flatten(0, 1)))
    metric = LatentSpectrum(5)
    metric.update(image)
    torch.testing.assert_close(metric.compute(), spectrum_of(image.permute(0, 2, 3, 1).reshape(-1, 5)))
    assert metric.samples == 24


def test_what_is_done_to_the_batch_afterwards_does_not_matter():
    rows = torch.randn(50, 4)
    metric = LatentSpectrum(4)
    metric.update(batch := rows.clone())
    batch.zero_()
    torch.testing.assert_close(metric.compute(), spectrum_of(rows))


def test_a_collection_accumulates_once_and_gives_every_rank():
    metrics = MetricCollection(
        [LatentSpectrum(6), EffectiveRank(6), NumericalRank(6), StableRank(6), ParticipationRatio(6)]
    )
    rows = torch.randn(3000, 6) * torch.tensor([3.0, 2, 1, 1, 0.1, 0.01])
    for batch in rows.split(700):
        metrics.update(batch)
    assert list(metrics.compute_groups.values()) == [[str(name) for name in metrics]]
    values = metrics.compute()
    variances = reference.deviations(rows.numpy()) ** 2
    assert values["EffectiveRank"].item() == pytest.approx(reference.effective_rank(variances**0.5))
    assert values["NumericalRank"].item() == (variances > 1e-3 * variances[0]).sum() == 5
    assert values["StableRank"].item() == pytest.approx(variances.sum() / variances[0])
    assert values["ParticipationRatio"].item() == pytest.approx(variances.sum() ** 2 / (variances**2).sum())
    metrics.update(rows)
    assert metrics["EffectiveRank"].samples == 6000
    metrics.reset()
    assert metrics["EffectiveRank"].samples == 0


def test_forward_gives_the_batch_and_keeps_the_whole():
    rows = torch.randn(40, 4)
    metric = LatentSpectrum(4)
    torch.testing.assert_close(metric(rows[:15]), spectrum_of(rows[:15]))
    torch.testing.assert_close(metric(rows[15:]), spectrum_of(rows[15:]))
    torch.testing.assert_close(metric.compute(), spectrum_of(rows))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.clone()])
def test_copies_go_on_alone(duplicate):
    rows = torch.randn(40, 4)
    metric = LatentSpectrum(4)
    metric.update(rows[:20])
    twin = duplicate(metric)
    twin.update(rows[20:])
    torch.testing.assert_close(metric.compute(), spectrum_of(rows[:20]))
    torch.testing.assert_close(twin.compute(), spectrum_of(rows))


def test_no_conversion_narrows_the_state():
    rows = torch.randn(100, 4) + 1000
    metric = LatentSpectrum(4).half().set_dtype(torch.float16)
    metric.update(rows)
    metric.set_dtype(torch.float32)
    torch.nn.ModuleList([metric]).to(torch.bfloat16)
    assert metric.scatter.dtype == metric.mean.dtype == metric.count.dtype == torch.float64
    torch.testing.assert_close(metric.compute(), spectrum_of(rows))


def test_usable_after_an_epoch_in_inference_mode():
    rows = torch.randn(3000, 4)
    metric = LatentSpectrum(4)
    with torch.inference_mode():
        metric.update(rows[:1500])
        metric.compute()
    metric.update(rows[1500:])
    torch.testing.assert_close(metric.compute(), spectrum_of(rows))


@pytest.mark.parametrize("max_rows", [None, 300])
def test_the_update_never_reads_back_from_the_device(max_rows):
    metric = LatentSpectrum(4, max_rows=max_rows).to("meta")  # where there is nothing to read
    for _ in range(12):
        mask = None if max_rows else torch.ones(500, device="meta")
        metric.update(torch.ones(500, 4, device="meta"), mask)
    assert len(metric.pending) == 12 * (500 if max_rows is None else 250) % 2048


def test_batches_of_any_length_fill_the_same_buffer():
    rows = torch.randn(9000, 4) + 10
    metric = LatentSpectrum(4)
    metric.update(rows[:1])
    buffer = metric.pending.data_ptr()
    for batch in rows[1:].split([2047, 1, 0, 4951, 2000]):
        metric.update(batch)
        assert len(metric.pending) < 2048
        assert metric.pending.data_ptr() in (buffer, 0)
    torch.testing.assert_close(metric.compute(), spectrum_of(rows), rtol=1e-12, atol=0)


def test_members_of_a_compute_group_do_not_spoil_each_other():
    rows = torch.randn(9000, 3) * torch.tensor([3.0, 2, 1])
    metrics = MetricCollection([LatentSpectrum(3), EffectiveRank(3)])
    seen = 0
    for batch in rows.split([500, 1900, 1, 3000, 3599]):
        metrics.update(batch)
        seen += len(batch)
        values = metrics.compute()  # each reads the rows that are pending
        torch.testing.assert_close(values["LatentSpectrum"], spectrum_of(rows[:seen]), rtol=1e-12, atol=0)
        assert values["EffectiveRank"].item() == pytest.approx(
            reference.effective_rank(values["LatentSpectrum"].numpy())
        )


def test_a_state_from_elsewhere_is_gone_on_with():
    rows = torch.randn(60, 4)
    metrics = MetricCollection([LatentSpectrum(4), EffectiveRank(4)])
    metrics.update(rows[:20])
    metrics.update(rows[20:40])
    member = metrics["EffectiveRank"]
    member.update(rows[40:])
    torch.testing.assert_close(member.principal_deviations(), spectrum_of(rows))
    saved, loaded = LatentSpectrum(4), LatentSpectrum(4)
    saved.persistent(True)
    saved.update(rows[:40])
    loaded.update(torch.zeros(3, 4))
    loaded.load_state_dict(saved.state_dict())
    loaded.update(rows[40:])
    torch.testing.assert_close(loaded.compute(), spectrum_of(rows))


def test_merged_rows_are_its_own():
    rows = torch.randn(60, 4)
    first, second = LatentSpectrum(4), LatentSpectrum(4)
    first.update(rows[:20])
    second.update(rows[20:])
    second.update(torch.full((3, 4), torch.nan))
    first.merge_state(second)
    second.reset()
    second.update(torch.zeros(30, 4))
    torch.testing.assert_close(first.compute(), spectrum_of(rows))
    assert (first.samples, first.dropped_rows) == (60, 3)


@pytest.mark.parametrize("way", ["update", "forward"])
def test_a_running_window_keeps_its_rows(way):
    rows = torch.randn(50, 4)
    metric = Running(LatentSpectrum(4), window=3)
    for batch in rows.split(10):
        getattr(metric, way)(batch)
    torch.testing.assert_close(metric.compute(), spectrum_of(rows[20:]))


def test_a_pickle_does_not_carry_the_buffer():
    metric = LatentSpectrum(64)
    metric.update(torch.randn(1500, 64))
    assert len(pickle.dumps(metric)) < 8 * 2.5 * 64**2 + 8000  # the state and its defaults


@pytest.mark.parametrize("shape", [(100_000, 4), (64, 4, 32, 32), (512, 128, 4)])
def test_a_share_of_the_rows(shape):
    latents = torch.arange(np.prod(shape) // 4)[:, None] + torch.zeros(4)
    latents = latents.reshape(64, 32, 32, 4).permute(0, 3, 1, 2) if len(shape) == 4 else latents.reshape(shape)
    metric = LatentSpectrum(4, max_rows=900)
    for _ in range(2):
        metric.update(latents)
    first, second = metric.pending[: len(metric.pending) // 2, 0], metric.pending[len(metric.pending) // 2 :, 0]
    n, share = latents.numel() // 4, -(-latents.numel() // 4 // 900)
    assert metric.samples == 2 * (n // share)
    for chosen in (first, second):
        gaps = torch.cat([chosen.sort().values, chosen.min()[None] + n]).diff()
        assert 1 <= gaps.min() <= gaps.max() < 3 * share, "evenly spread, and none twice"
    assert set(first.tolist()) != set(second.tolist())
    again = LatentSpectrum(4, max_rows=900)
    again.update(latents)
    assert torch.equal(again.pending[:, 0], first), "the same without a seed"


def test_a_share_sees_every_pixel():
    pixels = torch.arange(1024.0).reshape(1, 1, 32, 32).expand(256, 1, 32, 32)
    metric = LatentSpectrum(1, max_rows=2000)
    metric.update(pixels)
    assert metric.pending.unique().numel() > 800


def test_a_share_has_the_spectrum_of_the_whole():
    rows = torch.randn(40_000, 6) * torch.tensor([3.0, 2, 1, 1, 0.1, 0.01])
    torch.testing.assert_close(spectrum_of(*rows.split(8000), max_rows=1000), spectrum_of(rows), rtol=0.05, atol=0)
    whole = spectrum_of(rows, max_rows=40_000)
    assert torch.equal(whole, spectrum_of(rows))


@pytest.mark.parametrize("reads", [True, False], ids=["on the CPU", "where reading would wait"])
@pytest.mark.parametrize("axis", [None, 1])
def test_masked_positions_are_no_rows(axis, reads, monkeypatch):
    monkeypatch.setattr("lightning_rank.metrics.latent_spectrum._knows_values", lambda latents: reads)
    latents, mask = torch.randn(40, 70, 4), torch.rand(40, 70) < 0.3
    latents[~mask] = 100.0
    latents[0, 0], mask[0, 0] = torch.nan, True  # a bad row that counts as one
    latents[1, 1], mask[1, 1] = torch.inf, False  # and one that nobody sees
    metric = LatentSpectrum(4, feature_axis=axis)
    for part, kept in zip(latents.split(9), mask.split(9), strict=True):
        metric.update(part if axis is None else part.movedim(-1, axis), kept.float())
    assert (metric.samples, metric.dropped_rows) == (mask.sum() - 1, 1)
    expected = latents[mask & latents.isfinite().all(-1)]
    torch.testing.assert_close(metric.compute(), torch.tensor(reference.deviations(expected.double().numpy())))
    none = LatentSpectrum(4)
    none.update(latents, torch.zeros(40, 70))
    assert (none.samples, none.dropped_rows) == (0, 0)


@pytest.mark.parametrize("reads", [True, False])
def test_a_share_of_the_rows_is_one_of_those_that_count(reads, monkeypatch):
    monkeypatch.setattr("lightning_rank.metrics.latent_spectrum._knows_values", lambda latents: reads)
    metric = LatentSpectrum(2, max_rows=100)
    metric.update(torch.arange(8000.0).reshape(100, 40, 2), torch.arange(40).expand(100, 40) < 20)
    assert metric.samples == 100
    assert (metric.pending[:, 0] / 2 % 40 < 20).all()


@pytest.mark.parametrize("shape", [(3,), (3, 6), (3, 5, 4), ()])
def test_a_mask_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match=r"mask: expected shape \(3, 5\), that of the positions of latents, got \("):
        LatentSpectrum(4).update(torch.ones(3, 5, 4), torch.ones(shape))


@pytest.mark.parametrize(
    ("latents", "error", "message"),
    [
        (torch.ones(3, 5), ValueError, r"latents: expected 4 features on axis 1 of at least two, got shape \(3, 5\)"),
        (torch.ones(4), ValueError, r"latents: expected 4 features .* got shape \(4,\)"),
        (torch.ones(3, 4, dtype=torch.int32), TypeError, "latents: expected a real floating-point tensor, got .*int32"),
        (torch.ones(3, 4, dtype=torch.complex64), TypeError, "latents: expected a real .* got .*complex64"),
        (np.ones((3, 4)), TypeError, "latents: expected a real floating-point tensor, got ndarray"),
    ],
)
def test_bad_latents_are_refused_and_change_nothing(latents, error, message):
    metric = LatentSpectrum(4)
    metric.update(torch.randn(10, 4))
    before = metric.compute()
    with pytest.raises(error, match=message):
        metric.update(latents)
    assert torch.equal(metric.principal_deviations(), before)


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="dim: expected an int, got float"):
        LatentSpectrum(4.0)
    with pytest.raises(ValueError, match="dim: expected 1 or more, got 0"):
        LatentSpectrum(0)
    with pytest.raises(ValueError, match="max_rows: expected 1 or more, got 0"):
        LatentSpectrum(4, max_rows=0)
    with pytest.raises(TypeError, match="max_rows: expected an int, got bool"):
        LatentSpectrum(4, max_rows=True)
    with pytest.raises(ValueError, match="variance_rtol: expected a number in"):
        NumericalRank(4, variance_rtol=1.5)
    with pytest.raises(ValueError, match="share: expected a number in"):
        DirectionsForVariance(4, share=0)
    with pytest.raises(ValueError, match="first, last: expected 1 <= first < last, got 4 and 4"):
        PowerLawExponent(4, first=4)
    with pytest.raises(ValueError, match="epsilon: expected 0 or more"):
        RankMe(4, epsilon=-1)


def test_metrics_that_take_in_other_rows_of_a_batch_share_no_state():
    """Though the first batch, of few rows and as many features on each axis, looks the same to all of them."""
    first, second = torch.randn(1, 4, 4), torch.randn(200, 4, 4)
    settings = [{"feature_axis": 1}, {"feature_axis": 2}, {"feature_axis": 1, "max_rows": 100}]
    first[0] = first[0] + first[0].T
    metrics = MetricCollection({str(k): EffectiveRank(4, **options) for k, options in enumerate(settings)})
    alone = [EffectiveRank(4, **options) for options in settings]
    for batch in (first, second):
        metrics.update(batch)
        for metric in alone:
            metric.update(batch)
    assert [value.item() for value in metrics.compute().values()] == [metric.compute().item() for metric in alone]
    assert [int(metric.samples) for metric in metrics.values()] == [804, 804, 104]

"""The spectrum of a whole split, however it comes in."""

import copy
import pickle

import numpy as np
import processes
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics import MetricCollection

from lightning_rank.metrics import EffectiveRank, LatentSpectrum, NumericalRank, ParticipationRatio, StableRank


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
    assert metric.moments.dtype == torch.float64
    torch.testing.assert_close(metric.compute(), spectrum_of(rows))


def test_usable_after_an_epoch_in_inference_mode():
    rows = torch.randn(3000, 4)
    metric = LatentSpectrum(4)
    with torch.inference_mode():
        metric.update(rows[:1500])
        metric.compute()
    metric.update(rows[1500:])
    torch.testing.assert_close(metric.compute(), spectrum_of(rows))


def test_the_update_never_reads_back_from_the_device(monkeypatch):
    def refuse(*args):
        raise AssertionError("the host waits here")

    metric = LatentSpectrum(4)
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "cpu", "numpy", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for _ in range(5):
        metric.update(torch.ones(500, 4))
    monkeypatch.undo()
    assert metric.samples == 2500


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
    assert torch.equal(metric.singular_values(), before)


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="dim: expected an int, got float"):
        LatentSpectrum(4.0)
    with pytest.raises(ValueError, match="dim: expected 1 or more, got 0"):
        LatentSpectrum(0)
    with pytest.raises(ValueError, match="variance_rtol: expected a number in"):
        NumericalRank(4, variance_rtol=1.5)


def _uneven_shards(rank: int, world_size: int, rows: torch.Tensor, sizes: list[int]) -> tuple:
    metric = EffectiveRank(rows.shape[1])
    for batch in rows.split(sizes)[rank].split(300):
        metric.update(batch)
    value = metric.compute()
    spectrum = LatentSpectrum(rows.shape[1])
    spectrum.update(rows.split(sizes)[rank])
    deviations = spectrum.compute()
    with spectrum.sync_context():
        samples, dropped = spectrum.samples, spectrum.dropped_rows
    return value, deviations, samples, dropped, spectrum.samples


@pytest.mark.parametrize("sizes", [[2600, 400], [1500, 1499, 1], [3000, 0]])
def test_processes_equal_one(sizes, tmp_path):
    rows = torch.randn(3000, 12, dtype=torch.float64) * torch.logspace(0, -5, 12) + 100
    rows[7] = torch.nan
    whole = EffectiveRank(12)
    whole.update(rows)
    deviations = whole.singular_values()
    results = processes.in_processes(len(sizes), _uneven_shards, tmp_path, rows, sizes)
    for rank, (value, theirs, samples, dropped, own) in enumerate(results):
        assert value.item() == pytest.approx(whole.compute().item(), rel=1e-10)
        torch.testing.assert_close(theirs, deviations, rtol=1e-6, atol=0)
        assert (samples, dropped) == (2999, 1)
        assert own == sizes[rank] - (rank == 0)
    assert all(result[0] == results[0][0] for result in results), "the same to the bit on every process"

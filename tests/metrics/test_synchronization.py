"""Many processes equal one, with one sum for all layers."""

from collections.abc import Callable
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import MetricCollection

from lightning_rank.functional import principal_deviations
from lightning_rank.metrics import EffectiveRank, LatentSpectrum, ParticipationRatio, synchronize

COLLECTIVES = [name for name in dir(dist) if name.startswith(("all_", "gather", "broadcast", "reduce", "barrier"))]


def counted(function: Callable[[], Any]) -> tuple[Any, dict[str, list[int]]]:
    """What the function returns, and the numbers of elements that each collective was given."""
    calls: dict[str, list[int]] = {}

    def spy(name: str, collective: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.setdefault(name, []).append(args[0].numel() if args and isinstance(args[0], torch.Tensor) else 0)
            return collective(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in COLLECTIVES:
            patch.setattr(dist, name, spy(name, getattr(dist, name)))
        return function(), calls


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
    deviations = whole.principal_deviations()
    results = processes.in_processes(len(sizes), _uneven_shards, tmp_path, rows, sizes)
    for rank, (value, theirs, samples, dropped, own) in enumerate(results):
        assert value.item() == pytest.approx(whole.compute().item(), rel=1e-10)
        torch.testing.assert_close(theirs, deviations, rtol=1e-6, atol=0)
        assert (samples, dropped) == (2999, 1)
        assert own == sizes[rank] - (rank == 0)
    assert all(result[0] == results[0][0] for result in results), "the same to the bit on every process"


def _three_layers(rank: int, world_size: int, rows: list[torch.Tensor]) -> tuple:
    """The first process has rows of the first layer alone, the second of all, the third of none."""
    spectra: list[LatentSpectrum | None] = [LatentSpectrum(layer.shape[1]) for layer in rows]
    for spectrum, layer in zip(spectra, rows, strict=True):
        for batch in layer.tensor_split([700])[rank].split(300 + 31 * rank) if rank < 2 else ():
            spectrum.update(batch)
    if rank == 0:
        spectra[1] = spectra[2] = None
    if rank == 2:
        spectra = [None, None, None]
    pooled, calls = counted(lambda: synchronize([*spectra, None]))
    assert pooled.pop() is None
    assert synchronize([]) == []
    assert synchronize([None, None]) == [None, None]
    own = [None if spectrum is None else int(spectrum.samples) for spectrum in spectra]
    return pooled, calls, own


def test_all_layers_are_synchronized_at_once(tmp_path):
    dims = (5, 70, 12)
    rows = [torch.randn(3000, dim, dtype=torch.float64) * torch.logspace(0, -4, dim) + 100 for dim in dims]
    rows[0][7] = torch.nan
    results = processes.in_processes(3, _three_layers, tmp_path, rows)
    whole = [LatentSpectrum(dim) for dim in dims]
    whole[0].update(rows[0])
    for spectrum, layer in zip(whole[1:], rows[1:], strict=True):
        spectrum.update(layer[700:])
    for rank, (pooled, calls, own) in enumerate(results):
        assert own == [[699, None, None], [2300] * 3, [None] * 3][rank], "what was given stays as it was"
        for (moments, dropped), expected in zip(pooled, whole, strict=True):
            torch.testing.assert_close(
                principal_deviations(moments), expected.principal_deviations(), rtol=1e-6, atol=0
            )
            assert (moments.n, dropped) == (expected.samples, expected.dropped_rows)
        # Widths; then scatters on and above the diagonal, and counts and means of each process.
        strips = 5 * 5 + (32 * 70 + 32 * 38 + 6 * 6) + 12 * 12
        assert calls == {"all_reduce": [2 * 4, strips + 3 * (5 + 70 + 12 + 2 * 3)]}
        for (moments, _), (first, _) in zip(pooled, results[0][0], strict=True):
            assert all(map(torch.equal, moments, first)), "the same to the bit"


def _other_ways(rank: int, world_size: int, rows: torch.Tensor) -> None:
    mine = rows.tensor_split([1900, 1900])[rank]  # none for the second process
    group = dist.new_group([0, 2])

    def gather(tensor: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
        gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, tensor, group=group)
        return gathered

    whole = LatentSpectrum(6)
    whole.update(rows)
    expected = whole.principal_deviations()
    own = LatentSpectrum(6)
    own.update(mine)
    value, calls = counted(own.compute)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    assert calls == {"all_reduce": [6 * 6 + 3 * (6 + 2)]}
    for options in ({"dist_sync_fn": gather}, {"process_group": group}, {"dist_sync_on_step": True}):
        if rank == 1 and "process_group" in options:
            continue
        metric = EffectiveRank(6, **options)
        metric(mine)
        metric.reset()
        metric.update(mine)
        metric.sync(dist_sync_fn=options.get("dist_sync_fn"))
        torch.testing.assert_close(metric.principal_deviations(), expected, rtol=1e-10, atol=0)
        metric.unsync()
        metric.update(mine)  # what was synchronized is no part of what is accumulated
        assert metric.samples == 2 * len(mine)
        value, calls = counted(metric.compute)
        assert calls.keys() == {"all_gather" if "dist_sync_fn" in options else "all_reduce"}
        assert value.item() == pytest.approx(EffectiveRank.compute(whole).item(), rel=1e-10)
    collection = MetricCollection([EffectiveRank(6), ParticipationRatio(6)])
    collection.update(mine)
    collection.update(mine[:0])
    assert collection.compute()["EffectiveRank"].item() == pytest.approx(value.item(), rel=1e-10)


def test_every_way_of_torchmetrics_to_synchronize(tmp_path):
    rows = torch.randn(5000, 6, dtype=torch.float64) * torch.logspace(0, -3, 6) + 100
    processes.in_processes(3, _other_ways, tmp_path, rows)


def _unlike(rank: int, world_size: int) -> str:
    with pytest.raises(ValueError, match="spectra") as error:
        synchronize([None, LatentSpectrum(8 * (1 + rank))])
    return str(error.value)


def test_unlike_widths_are_refused_on_every_process(tmp_path):
    told = "spectra[1]: expected the same width on all processes, got 8 on one and 16 on another"
    assert processes.in_processes(2, _unlike, tmp_path) == [told, told]


def _wrapped(rank: int, world_size: int, wrapper: str, images: torch.Tensor, state: dict) -> torch.Tensor:
    encoder = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 6))
    encoder.load_state_dict(state)
    if wrapper == "ddp":
        encoder = DistributedDataParallel(encoder)
    else:
        fsdp = pytest.importorskip("torch.distributed.fsdp")
        fsdp.fully_shard(encoder, mesh=dist.device_mesh.init_device_mesh("cpu", (world_size,)))
    spectrum = LatentSpectrum(6)
    for batch in images.tensor_split([1200])[rank].split(256):
        latents = encoder(batch)
        spectrum.update(latents)
    latents.sum().backward()
    [pooled] = synchronize([spectrum])
    return principal_deviations(pooled.moments)


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_latents_of_wrapped_modules(wrapper, tmp_path):
    encoder = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 6))
    images = torch.randn(2000, 10)
    whole = LatentSpectrum(6)
    whole.update(encoder(images))
    first, second = processes.in_processes(2, _wrapped, tmp_path, wrapper, images, encoder.state_dict())
    assert torch.equal(first, second)
    torch.testing.assert_close(first, whole.compute(), rtol=1e-5, atol=0)


def test_one_process_alone_has_nothing_to_do():
    spectrum = LatentSpectrum(3)
    spectrum.update(torch.randn(20, 3))
    [own, nothing] = synchronize([spectrum, None])
    assert nothing is None
    assert torch.equal(principal_deviations(own.moments), spectrum.compute())

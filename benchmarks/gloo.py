"""What it takes several processes to synchronize spectra, over gloo."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor


def in_processes(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``function(rank, *args)`` returns in each of several forked processes of one thread."""
    with tempfile.TemporaryDirectory() as directory:
        torch.multiprocessing.start_processes(
            _run, (world_size, directory, function, args), nprocs=world_size, start_method="fork"
        )
        return [torch.load(f"{directory}/{rank}.pt", weights_only=False) for rank in range(world_size)]


def _run(rank: int, world_size: int, directory: str, function: Callable[..., Any], args: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=world_size)
    torch.save(function(rank, *args), f"{directory}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def filled(package: ModuleType, dim: int) -> Any:
    """A spectrum with rows in it, and none that are yet to be multiplied."""
    spectrum = package.metrics.LatentSpectrum(dim)
    spectrum.update(torch.randn(64, dim))
    spectrum.as_moments()
    return spectrum


def synchronized(package: ModuleType, spectra: list[Any]) -> Any:
    """All of them; a version that cannot do so at once agrees on each width and gathers each state."""
    if hasattr(package.metrics, "synchronize"):
        return package.metrics.synchronize(spectra)
    for spectrum in spectra:
        dist.all_reduce(torch.tensor(spectrum.dim), dist.ReduceOp.MAX)
        spectrum.sync()
    return spectra


def exchange(rank: int, package: ModuleType, dims: list[int]) -> tuple[float, float, int, float]:
    """Seconds, peak memory above that before, number of collectives, and bytes sent if each goes round a ring."""
    spectra = [filled(package, dim) for dim in dims]
    calls: list[float] = []
    world_size = dist.get_world_size()

    def spy(collective: Callable[..., Any], tensor: Callable[..., Tensor], rounds: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(tensor(*args).nbytes * rounds * (world_size - 1) / (world_size if rounds == 2 else 1))
            return collective(*args, **kwargs)

        return call

    originals = dist.all_reduce, dist.all_gather, dist.barrier
    dist.all_reduce = spy(dist.all_reduce, lambda tensor, *_: tensor, 2)  # summed, then spread
    dist.all_gather = spy(dist.all_gather, lambda _, tensor, *__: tensor, 1)
    dist.barrier = spy(dist.barrier, lambda *_: torch.empty(0), 1)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    start = time.perf_counter()
    kept = synchronized(package, spectra)
    seconds = time.perf_counter() - start
    peak = _memory("VmHWM") - before
    dist.all_reduce, dist.all_gather, dist.barrier = originals
    del kept
    return seconds, peak, len(calls), sum(calls)


def _memory(what: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return 1024 * int(line.split()[1])

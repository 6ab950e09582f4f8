"""Two or more ways to do one thing, timed in turn in one process."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ratio:
    """Time of one way over that of another: the median of the rounds, and the middle 80 % of them."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def interleave(
    ways: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    min_seconds: float = 0.02,
    budget: float = 20.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Tensor]:
    """Seconds that a call of each way takes, shape ``(rounds,)``.

    Each round calls every way once, or as often as fills ``min_seconds``, the order turning from round to round, so
    that whatever slows the machine down slows all of them. Fewer rounds, though never under three, if they would
    take longer than ``budget`` seconds. With ``time.process_time`` for a clock what others do on the machine counts for
    little; it tells nothing of threads that wait.
    """
    repeats, spent = {}, 0.0
    for name, call in ways.items():
        call()  # warm-up: allocation, autotuning, compilation
        once = _seconds(call, 1, clock)
        repeats[name] = max(1, int(min_seconds / max(once, 1e-9)))
        spent += once * repeats[name]
    rounds = max(3, min(rounds, int(budget / spent)))
    names = list(ways)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(_seconds(ways[name], repeats[name], clock))
    return {name: torch.tensor(seconds, dtype=torch.float64) for name, seconds in times.items()}


def ratio(times: Mapping[str, Tensor], way: str, other: str) -> Ratio:
    """How long ``way`` takes over ``other``, round by round."""
    ratios = times[way] / times[other]
    low, high = torch.quantile(ratios, torch.tensor([0.1, 0.9], dtype=ratios.dtype)).tolist()
    return Ratio(ratios.median().item(), low, high)


def milliseconds(times: Mapping[str, Tensor], way: str) -> float:
    """The median of a way."""
    return 1000 * times[way].median().item()


def _seconds(call: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    if not torch.cuda.is_available():
        start = clock()
        for _ in range(repeats):
            call()
        return (clock() - start) / repeats
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / repeats

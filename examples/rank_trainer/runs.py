"""Which trainings make up a sweep."""

import argparse
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rank_trainer.methods import Method


@dataclass(frozen=True)
class Run:
    """One training of a method, by its name, with a depth, a seed, and a gain if the method takes one."""

    method: str
    depth: int
    gain: float | None
    seed: int

    @property
    def name(self) -> str:
        """Such as ``ours-depth4-gain0.1-seed0``."""
        gain = "" if self.gain is None else f"-gain{self.gain:g}"
        return f"{self.method}-depth{self.depth}{gain}-seed{self.seed}"


def list_runs(
    methods: Iterable[Method], depths: Sequence[int], gains: Sequence[float], seeds: Sequence[int]
) -> list[Run]:
    """All runs, seed by seed: each method at the depths and with the gains that it takes.

    Raises:
        ValueError: A depth or a seed is no whole number or negative, or a gain is not positive and finite; or there is
            no run.
    """
    methods = list(methods)
    check_whole_numbers("depths", depths, least=0)
    check_whole_numbers("seeds", seeds, least=0)
    for gain in gains:
        if not 0 < gain < math.inf:
            raise ValueError(f"gains: expected positive, finite numbers, got {gain}")
    runs = [
        Run(method.name, depth, gain, seed)
        for seed in dict.fromkeys(seeds)
        for method in methods
        for depth in sorted(set(depths))
        if (depth > 0) == method.takes_depth
        for gain in (dict.fromkeys(gains) if method.takes_gain else [None])
    ]
    if not runs:
        raise ValueError(
            "methods, depths, gains, seeds: expected depth 0 for 'plain' or one above 0 for the others, and a gain and "
            f"a seed, got {[m.name for m in methods]}, {list(depths)}, {list(gains)}, {list(seeds)}"
        )
    return runs


def check_whole_numbers(name: str, values: Iterable[int], *, least: int) -> None:
    """Refuse values of a setting that cannot be counted with.

    Raises:
        ValueError: One is no whole number, or less than ``least``.
    """
    for value in values:
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected a whole number of {least} or more, got {value!r}")


def shard_of(text: str) -> tuple[int, int]:
    """``I/N`` on a command line: the I-th of N shards, counted from 1."""
    number, _, shards = text.partition("/")
    if not (number.isdecimal() and shards.isdecimal() and 1 <= int(number) <= int(shards)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, such as 1/4, got {text}")
    return int(number), int(shards)


def identity(settings: dict[str, Any]) -> str:
    """Six characters that tell settings from others."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]

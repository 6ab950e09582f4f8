"""Which trainings make up a sweep."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

METHODS = ("plain", "irmae", "ours")


@dataclass(frozen=True)
class Run:
    """One training: ``plain`` without linear layers, ``irmae`` as in Jing et al. 2020, or ``ours``."""

    method: str
    depth: int
    gain: float | None
    seed: int

    @property
    def name(self) -> str:
        """Such as ``ours-depth4-gain0.1-seed0``."""
        gain = "" if self.gain is None else f"-gain{self.gain:g}"
        return f"{self.method}-depth{self.depth}{gain}-seed{self.seed}"


def list_runs(methods: Sequence[str], depths: Sequence[int], gains: Sequence[float], seeds: Sequence[int]) -> list[Run]:
    """All runs, seed by seed: ``plain`` at depth 0, the others at those above, ``ours`` with each gain.

    Raises:
        ValueError: A method is unknown, a depth negative or a gain not positive; or there is no run.
    """
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"methods: expected some of {METHODS}, got {method!r}")
    if min(depths, default=-1) < 0:
        raise ValueError(f"depths: expected numbers of 0 or more, got {list(depths)}")
    for gain in gains:
        if not gain > 0:
            raise ValueError(f"gains: expected positive numbers, got {gain}")
    runs = [
        Run(method, depth, gain, seed)
        for seed in dict.fromkeys(seeds)
        for method in METHODS
        if method in methods
        for depth in sorted(set(depths))
        if (depth == 0) == (method == "plain")
        for gain in (dict.fromkeys(gains) if method == "ours" else [None])
    ]
    if not runs:
        raise ValueError(
            "methods, depths, gains, seeds: expected depth 0 for 'plain' or one above 0 for the others, and a gain and "
            f"a seed, got {list(methods)}, {list(depths)}, {list(gains)}, {list(seeds)}"
        )
    return runs


def identity(settings: dict[str, Any]) -> str:
    """Six characters that tell settings from others."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]

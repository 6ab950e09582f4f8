"""Every study runs in small, shows the tables that it promises, says what follows from them, and writes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PROGRAMS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if '\nif __name__ == "__main__"' in path.read_text())
#: The first columns of a table of each study, its number of lines, and what the report says of so little data.
PROMISED = {
    "bottleneck": (
        ["threads", "what", "depth", "dim", "rows", "ours / sequence", "required", "reached"],
        5,
        "collapsed",
    ),
    "converged": (
        ["", "seeds", "effective rank", "numerical rank", "test error"],
        5,
        "All 7 stops of all runs are here",
    ),
    "depth_coordinate_check": (["after one step", "learning rate", "depth 1", "depth 4"], 12, "**Verdict: holds**"),
    "gain_corrected_rate": (["optimizer", "multiplier", "depth N"], 4, "**Verdict: the correction does not hold**"),
    "greedy_learning": (
        ["depth", "variance", "half learned at", "predicted"],
        4,
        "- **Holds**: from the aligned start",
    ),
    "l2_nonlinear": (["network", "cutoff", "depth", "decay", "predicted"], 4, "**Verdict: the prediction "),
    "loader": (["", "images a second", "images a second / training step's"], 3, "1,000 JPEG files"),
    "monitor": (["way", "time / (all rows, svdvals)", "time / one float64 matmul"], 6, "5000 x 128"),
    "monitor_accuracy": (["latents", "true effective rank", "LatentSpectrum"], 7, "2000 rows of width 128"),
    "rank_fixed_point": (
        ["noise", "decay", "depth", "cutoff", "rank right at the end"],
        6,
        "**Verdict: does not hold**",
    ),
    "rank_window": (["setting", "rank", "depth 2: window"], 6, "**Verdict: does not hold**"),
    "scale": (["threads", "batch", "now / product", "now / svdvals"], 6, "An epoch of 4000 x 32"),
    "stable_rate": (["trains", "linear layers at", "2 layers", "4 layers", "all depths"], 4, "depths: does not hold**"),
    "synthetic_recovery": (["variant", "rank found is that of the data"], 6, "**Verdict: does not hold**"),
    "training_overhead": (["threads", "parts", "seconds", "time / without"], 4, "All parts together cost"),
}


def tables(text):
    """Header and lines of each Markdown table."""
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if len(lines) > 2 and set(lines[1]) <= set("|- "):
            yield [[cell.strip() for cell in line[1:-1].split(" | ")] for line in (lines[0], *lines[2:])]


def test_all_studies_are_here():
    assert sorted(PROMISED) == PROGRAMS


@pytest.mark.slow
@pytest.mark.parametrize("program", PROMISED)
def test_quick(program, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in BENCHMARKS.rglob("results/**/*")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(BENCHMARKS / f"{program}.py"), "--quick"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    columns, lines, says = PROMISED[program]
    found = list(tables(done.stdout))
    for header, *rest in found:
        assert {len(line) for line in rest} == {len(header)} == {len(set(header))}, header
    assert (columns, lines) in [(header[: len(columns)], len(rest)) for header, *rest in found]
    assert says in " ".join(done.stdout.split())
    assert {path: path.stat().st_mtime_ns for path in BENCHMARKS.rglob("results/**/*")} == before
    assert list(tmp_path.iterdir()) == []

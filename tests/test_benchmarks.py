"""Every benchmark runs; its figures are its own affair."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PROGRAMS = sorted(path.name for path in BENCHMARKS.glob("*.py") if "argparse" in path.read_text())


@pytest.mark.parametrize("program", PROGRAMS)
def test_quick(program, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in BENCHMARKS.rglob("results/**/*")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(BENCHMARKS / program), "--quick"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert "| --- |" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in BENCHMARKS.rglob("results/**/*")} == before

"""Every block of the README runs, in order, as a reader would paste it."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:.*does not have many workers|.*smaller than the logging interval")
def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 5
    names: dict = {"__name__": "readme"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, block {number}", "exec"), names)
    assert 1 <= names["trainer"].callback_metrics["rank/effective"] <= 32
    assert names["model"].linear_bottleneck.depth == 4


def test_links_lead_somewhere():
    anchors = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", README, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in anchors
        elif not target.startswith("https://"):
            assert (ROOT / target).exists(), target


def test_ci_runs_the_commands_that_the_readme_gives():
    ci = (ROOT / ".ci/run").read_text()
    for command in re.findall(r"python -m pip install.*", README):
        install, run = command.split(" && ")
        assert shlex.split(install)[-1] in ci
        assert run.removeprefix("python ") in ci


def test_figures_are_those_of_the_committed_report():
    report = (ROOT / "benchmarks/results/rank_sweep_digits/README.md").read_text()

    def reported(method: str, depth: int, gain: str, column: int) -> float:
        row = re.findall(rf"\| {method} \| {depth} \| {gain} \|(.*)", report)[0]
        return float(row.split("|")[column].split()[0])

    def told(pattern: str) -> list[float]:
        (numbers,) = re.findall(re.sub(" ", r"\\s+", pattern).replace("#", r"(\d+(?:\.\d+)?)"), README)
        return [float(number) for number in numbers]

    by_depth = told("2, 4 and 8 layers end at effective ranks of #, # and #")
    assert by_depth == pytest.approx([reported("ours", depth, "0.1", 1) for depth in (2, 4, 8)], abs=0.051)
    gains = ("0.03", "0.1", "0.3")
    ranks, errors = told("effective ranks of #, # and #, and"), told("at errors of #, # and #;")
    assert ranks == pytest.approx([reported("ours", 4, gain, 1) for gain in gains], abs=0.051)
    assert errors == pytest.approx([reported("ours", 4, gain, 3) for gain in gains], abs=0.051)
    rank, error = told("the plain autoencoder has rank # and error #")
    assert rank == pytest.approx(reported("plain", 0, "-", 1), abs=0.51)
    assert error == pytest.approx(reported("plain", 0, "-", 3), abs=0.0051)


def test_costs_are_those_of_the_committed_reports():
    def reported(name: str, row: str, column: int = 1) -> float:
        report = (ROOT / f"benchmarks/results/{name}/README.md").read_text()
        return float(report[report.index(row) + len(row) :].split("|")[column].split()[0])

    costs = [float(cost) for cost in re.findall(r"\| \[([\d.]+)\]\(benchmarks/results", README)]
    assert costs == [
        pytest.approx(reported("bottleneck", "| training step | 8 | 128 | 1024 "), abs=0.0051),
        pytest.approx(reported("bottleneck", "| training step | 16 | 128 | 1024 "), abs=0.0051),
        pytest.approx(reported("bottleneck", "| evaluation, collapsed | 8 | 128 | 1024 "), abs=0.0051),
        pytest.approx(reported("monitor", "| epoch of 100000 x 128 over all rows, svdvals float32 "), abs=0.0051),
        pytest.approx(reported("monitor", "| update over the encoder's forward, 256 images, one thread "), abs=0.00051),
        pytest.approx(reported("training_overhead", "DepthScaledLR, EffectiveRankMonitor ", 2), abs=0.0051),
    ]


def test_the_table_of_smaller_models_is_that_of_the_committed_report():
    report = (ROOT / "benchmarks/results/shrink_autoencoder/README.md").read_text()
    reported = [[cell.split()[0] for cell in row.split("|")[2:5]] for row in re.findall(r"\|.*±.*", report)]
    section = README[README.index("## A smaller model") : README.index("## What it costs")]
    told = [[cell.strip() for cell in row.split("|")[2:5]] for row in re.findall(r"\|.*0\.\d+ \|", section)]
    assert len(told) == 5
    assert told == reported

"""Every block of the README runs, in order, as a reader would paste it."""

import re
import shlex
from pathlib import Path

import pytest
import rank_sweep

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
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
    assert names["model"].encoder.linear_bottleneck.depth == 8
    assert names["linear"].encoder.linear_bottleneck.depth == 4


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(RESULTS.rglob("README.md"))], ids=lambda page: page.parent.name
)
def test_links_lead_somewhere(page):
    text = page.read_text()
    anchors = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors
        elif not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_every_report_is_in_the_table_of_verdicts():
    table = (RESULTS / "README.md").read_text()
    for report in RESULTS.glob("*/README.md"):
        assert f"]({report.parent.name}/README.md)" in table


def test_flags_of_the_trainer_are_those_it_has():
    commands = re.findall(r"python examples/rank_sweep\.py(.*)", README.replace('"', ""))
    assert len(commands) >= 3
    for command in commands:
        rank_sweep.parse_args(re.sub(r"`.*", "", command).replace("--help", "").split())
    with pytest.raises(SystemExit):
        rank_sweep.parse_args(["--no-such-flag"])
    known = (ROOT / "examples/rank_sweep.py").read_text().replace("limit-{split}", "limit-train")
    section = README[README.index("## A study of your own") : README.index("## What holds")]
    for flag in set(re.findall(r"--[a-z][a-z-]*", section)) - {"--limit-val-batches", "--limit-test-batches"}:
        assert f'"{flag}"' in known, flag


def test_ci_runs_the_commands_that_the_readme_gives():
    ci = (ROOT / ".ci/run").read_text()
    for command in re.findall(r"python -m pip install.*", README):
        install, run = command.split(" && ")
        assert shlex.split(install)[-1] in ci
        assert run.removeprefix("python ") in ci


def told(pattern: str, text: str = README) -> list[float]:
    """The numbers at the places of # in the one passage of the text that reads so."""
    pattern = re.escape(pattern).replace(r"\ ", r"\s+").replace(r"\#", r"([\d,]+(?:\.\d+)?)")
    (numbers,) = re.findall(pattern, text)
    return [float(number.replace(",", "")) for number in ([numbers] if isinstance(numbers, str) else numbers)]


def test_figures_are_those_of_the_evidence():
    report = {page.parent.name: page.read_text() for page in RESULTS.glob("*/README.md")}
    recovery = report["synthetic_recovery"]
    assert told("2 to 16, in # of # runs") == told("| ours | # of # |", recovery)
    assert told("not needed, # of # without it") == told("| orthogonal, unscaled | # of # |", recovery)
    check = report["depth_coordinate_check"]
    low, high = told("one step: # to # for SGD", check)
    (percent,) = told("up to 32, to # %.")
    assert 100 * max(1 - low, high - 1) == pytest.approx(percent, abs=0.05)
    assert told("RMSprop it is # to # of it") == told("RMSprop, # to #, to depth 32", check)
    assert told("it grows up to # times") == told("up to # times", check)
    trains, finds = report["stable_rate"].split("**Verdict: ")[1:]
    scaled, unscaled = told("a factor of # over depths 2 to 16, with one rate for all layers by #.")
    with_it, without = told("finds the rank as well changes by # and by #, so")
    for verdict, factors in ((trains, (scaled, unscaled)), (finds, (with_it, without))):
        assert told("by a factor of # (Adam) and # (SGD", verdict) == [factors[0]] * 2
        assert told("with one rate for all layers by # (Adam) and # (SGD", verdict) == [factors[1]] * 2
    greedy = report["greedy_learning"]
    assert told("aligned with them at # to # of the times") == told("half learned at # to # of", greedy)
    assert told("from the usual start at # to # (") == told("learned at # to # times the predicted", greedy)
    window = report["rank_window"]
    came, of, left = told("Under Adam # of # runs come to the rank of their data, and # leave it", window)
    assert told("Under Adam # of # runs reach the rank of their data and leave it again") == [came, of] == [left, of]
    cells = re.findall(r"\| Adam \| 8 \|(.*)", window)[0].split("|")
    # "200 (100 to 200) to 1,600 (1,600 to 1,700)": medians, and the ends of the seeds.
    ends = [float(re.sub(r"\(.*?\)", "", cell).split(" to ")[1].replace(",", "")) for cell in (cells[0], cells[6])]
    assert told("those of rank 8 after # steps at depth 2 and # at depth 16") == ends
    fixed = told("right at # steps in # of # runs")
    assert fixed == told("is that of the data at # steps in # of # runs", report["rank_fixed_point"])


def test_gains_are_those_of_the_committed_reports():
    report = (ROOT / "benchmarks/results/rank_sweep_digits/README.md").read_text()

    def reported(method: str, depth: int, gain: str, column: int) -> float:
        row = re.findall(rf"\| {method} \| {depth} \| {gain} \|(.*)", report)[0]
        return float(row.split("|")[column].split()[0])

    gains = ("0.03", "0.1", "0.3", "1.0")
    columns = [("ours", 4, gain) for gain in gains] + [("plain", 0, "-")]
    assert by_gain("rank_sweep_digits") == [(reported(*c, 1), reported(*c, 4)) for c in columns]
    for data in ("real_images_cifar10", "real_images_fashion_mnist"):
        measured = settings_of(data)
        names = [f"ours 4 layers, gain {float(gain):g}" for gain in gains] + ["plain"]
        assert by_gain(data) == [measured[name] for name in names]


def by_gain(name: str) -> list[tuple[float, ...]]:
    """Effective rank and test error in the README's table of gains."""
    (row,) = re.findall(rf"\| \[[^]]*\]\(benchmarks/results/{name}/README.md\), [^|]*\|(.*)\|", README)
    return [tuple(map(float, cell.split(";"))) for cell in row.split("|")]


def settings_of(name: str) -> dict[str, tuple[float, float]]:
    """Effective rank and test error of each setting in the first of the report's tables of all settings."""
    report = (RESULTS / name / "README.md").read_text()
    table = report[report.index("## All settings") :].split("\n\n")[1]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    return {row[0]: (float(row[3].split()[0]), float(row[4].split()[0])) for row in cells if row[3] != "-"}


def test_dependence_on_depth_is_that_of_the_committed_reports():
    names = ("real_images_fashion_mnist", "real_images_cifar10")
    verdicts = [(RESULTS / name / "README.md").read_text() for name in names]
    pattern = (
        "changes by a factor of # at gain 0.03, # at gain 0.1, # at gain 0.3, # at gain 1; trained longer, # at gain"
    )
    ours = [told(pattern, verdict) for verdict in verdicts]
    flat = re.sub(r"\]\(.*?\)|\[", "", README)
    worst = told("changes by a factor of up to # on Fashion-MNIST and # on CIFAR-10, IRMAE's by # and #.", flat)
    assert worst == [max(some) for some in ours] + [told("; IRMAE style by #. (", v)[0] for v in verdicts]
    at_most, smallest = told(
        "2, 4 and 8 layers differ by a factor of # at most, also after twice as many steps; at 0.03 it is #."
    )
    assert at_most == max(max(some[1:]) for some in ours)  # the last is that of the longer training
    assert smallest == max(some[0] for some in ours)


def test_growth_of_the_rank_is_that_of_the_committed_reports():
    factors = []
    for name in ("real_images_fashion_mnist", "real_images_cifar10"):
        (sentence,) = re.findall(
            r"effective rank grows\*\*(.*?)\.\n\n", (RESULTS / name / "README.md").read_text(), re.S
        )
        pairs = re.findall(r"([\d.]+)\s+to\s+([\d.]+)\s+\(", sentence)
        assert len(pairs) == 7
        factors += [float(later) / float(sooner) for sooner, later in pairs]
    assert told("the rank is higher by a factor of # to #.") == [round(min(factors), 1), round(max(factors), 1)]


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
    assert len(told) == 7
    assert told == reported

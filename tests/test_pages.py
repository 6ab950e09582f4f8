"""Every page runs, as a reader would paste it; its links lead on, and its figures are those of the reports."""

import re
import shlex
from pathlib import Path

import excerpts
import pytest
import rank_sweep

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
READ = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in READ[1:] if blocks(page, "python")], ids=name_of)
@pytest.mark.filterwarnings("ignore:.*does not have many workers|.*smaller than the logging interval")
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": page.stem}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


@pytest.mark.filterwarnings("ignore:.*does not have many workers|.*smaller than the logging interval")
def test_the_readme_is_one_screen_and_its_autoencoder_finds_the_rank_of_its_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readme = ROOT / "README.md"
    assert len(readme.read_text().splitlines()) <= 150
    names: dict = {"__name__": "readme"}
    monitored, autoencoder = blocks(readme, "python")
    exec(autoencoder, names)
    assert names["trainer"].callback_metrics["rank/numerical"] == 4
    exec(autoencoder.replace("depth=4", "depth=0").replace("DepthScaledLR(), ", ""), names)
    assert names["trainer"].callback_metrics["rank/numerical"] > 6
    exec(monitored, names)
    assert 1 <= names["trainer"].callback_metrics["rank/train/effective"] <= 32


@pytest.mark.parametrize("page", [*READ, *sorted(RESULTS.rglob("README.md"))], ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        goal = page.parent / path if path else page
        assert goal.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", goal.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target


@pytest.mark.parametrize("page", excerpts.PAGES, ids=name_of)
def test_figures_are_those_of_the_reports(page):
    assert page.read_text() == excerpts.written(page), "python docs/excerpts.py writes them anew"


def test_a_figure_that_is_not_that_of_its_report_is_seen(tmp_path):
    page = tmp_path / "page.md"
    right = (ROOT / "docs/choose.md").read_text()
    start = right.index("<!-- table gains -->")
    figure = re.search(r"\d+\.\d+; \d+\.\d+", right[start:])[0]
    page.write_text(right[:start] + right[start:].replace(figure, "0.12; 34.5", 1))
    assert figure in excerpts.written(page)
    assert "0.12; 34.5" not in excerpts.written(page)
    page.write_text("<!-- quote rank_window: **Verdict: there is none -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match=r"page.md: expected a paragraph of rank_window that begins .* found none"):
        excerpts.written(page)


def test_every_report_is_in_the_table_of_verdicts():
    table = (RESULTS / "README.md").read_text()
    for report in RESULTS.glob("*/README.md"):
        assert f"]({report.parent.name}/README.md)" in table


def test_flags_of_the_trainer_are_those_it_has():
    commands = [found for page in READ for found in re.findall(r"examples/rank_sweep\.py([^`&\n]*)", page.read_text())]
    assert len(commands) >= 6
    for command in commands:
        rank_sweep.parse_args(command.replace("$SLURM_ARRAY_TASK_ID", "1").split())
    known = (ROOT / "examples/rank_sweep.py").read_text()
    told = set(re.findall(r"`(--[a-z][a-z-]*)", (ROOT / "docs/sweep.md").read_text()))
    assert len(told) >= 10
    for flag in told:
        assert f'"{flag}"' in known or flag.replace("train", "{split}") in known, flag


def test_ci_runs_the_commands_that_are_given():
    ci = (ROOT / ".ci/run").read_text()
    for page in READ:
        for command in re.findall(r"python -m pip install.* && .*", page.read_text()):
            install, run = command.split(" && ")
            assert shlex.split(install)[-1] in ci
            assert run.removeprefix("python ") in ci

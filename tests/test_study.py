"""The runner of the studies: what it measures, prints and writes."""

import dataclasses
import sys

import pytest
import study
import tables
from matplotlib.figure import Figure

ASKED = []


def measure(
    steps: int = 10, names: tuple[str, ...] = ("a", "b"), silent: bool = False, shard: tuple[int, int] = (1, 1)
) -> study.Tables:
    ASKED.append((steps, names) if shard == (1, 1) else shard)
    if silent:
        return {}
    return {"runs": [{"name": name, "steps": steps, "error": 1 / 3} for name in names], "more.curves": [{"y": [1, 2]}]}


def draw(more_curves):
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot(more_curves[0]["y"])
    return figure


STUDY = study.Study(
    name=lambda steps: f"made_up_{steps}",
    title="Made up",
    measure=measure,
    text=lambda runs, verdict, steps: f"After {steps}\nsteps:\n\n{tables.markdown(runs)}\n\n{verdict}",
    verdict=lambda runs: f"**Verdict: {study.judged(len(runs) == 2, len(runs) == 1)}**",
    figures={"curves.png": draw},
    quick={"names": ("a",)},
    flags={"steps": "how many", "silent": "say nothing", "shard": "a part"},
    unwritten=["more.curves"],
)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def run(*arguments, **changes):
        ASKED.clear()
        monkeypatch.setattr(study, "RESULTS", tmp_path)
        monkeypatch.setattr(sys, "argv", ["benchmarks/made_up.py", *arguments])
        dataclasses.replace(STUDY, **changes).main()
        return capsys.readouterr().out

    return run


def test_a_study_writes_its_report_with_tables_and_figures(run, tmp_path):
    out = run("--steps", "20")
    directory = tmp_path / "made_up_20"
    assert sorted(path.name for path in directory.iterdir()) == ["README.md", "curves.png", "runs.csv"]
    title, _, *lines = (directory / "README.md").read_text().splitlines()
    assert title == "# Made up"
    assert lines[:5] == ["After 20 steps:", "", "| name | steps | error |", "| --- | --- | --- |", "| a | 20 | 0.333 |"]
    assert "**Verdict: holds**" in lines
    assert "- Every figure: [runs.csv](runs.csv)." in lines
    assert "- Command: `python benchmarks/made_up.py --steps 20`" in lines
    assert out.startswith("After 20 steps:\n")
    assert tables.read_csv(directory / "runs.csv")[1] == {"name": "b", "steps": 20, "error": 0.3333}
    assert (directory / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_quick_takes_its_sizes_and_writes_nothing(run, tmp_path):
    out = run("--quick")
    assert ASKED == [(10, ("a",))]
    assert "**Verdict: holds within limits**" in out
    assert list(tmp_path.iterdir()) == []


def test_what_the_command_line_says_holds_in_a_quick_run_too(run):
    run("--quick", "--steps", "7", quick={"steps": 5, "names": ("a",)})
    assert ASKED == [(7, ("a",))]
    run("--quick", quick={"steps": 5, "names": ("a",)})
    assert ASKED == [(5, ("a",))]


def test_a_shard_of_the_command_line_is_two_numbers(run, capsys):
    run("--quick", "--shard", "2/3")
    assert ASKED == [(2, 3)]
    with pytest.raises(SystemExit):
        run("--quick", "--shard", "3/2")
    assert "--shard: expected I/N with I from 1 to N" in capsys.readouterr().err


def test_quick_draws_the_figures_too(run):
    def broken(runs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run("--quick", figures={"curves.png": broken})


def test_without_tables_there_is_no_report(run, tmp_path):
    assert run("--silent") == ""
    assert list(tmp_path.iterdir()) == []


def test_only_flags_are_taken_from_the_command_line(run):
    with pytest.raises(SystemExit):
        run("--names", "c")


def test_paragraphs_are_filled_and_all_else_is_left():
    body = "words " * 30 + "\n\n| a |\n| b |\n\n    p = 1\n\n- one\n  two"
    filled, *rest = study.wrapped(body).split("\n\n")
    assert max(map(len, filled.splitlines())) <= 120
    assert rest == ["| a |\n| b |", "    p = 1", "- one\n  two"]


ROWS = [{"kind": kind, "seed": seed, "rank": rank} for kind, seed, rank in (("a", 0, 4), ("b", 0, 7), ("a", 1, 5))]


def test_rows_are_selected_and_summed_up():
    assert tables.where(ROWS, kind="a", seed=1) == [ROWS[2]]
    assert tables.values(ROWS, "rank", kind="a") == [4, 5]
    assert tables.different(ROWS, "kind") == ["a", "b"]
    assert tables.different(ROWS, "kind", "seed") == [("a", 0), ("b", 0), ("a", 1)]
    assert tables.share(ROWS, lambda row: row["rank"] > 4) == "2 of 3"
    assert tables.ends([3.0, 1.0, 2.0]) == "1.000 to 3.000"
    assert tables.spread([3, 1, 2]) == "2 (1 to 3)"
    assert tables.spread([2, 2]) == "2"
    assert tables.summary(ROWS, {"kind": "of"}, {"rank": "rank", "runs": len}).splitlines() == [
        "| of | rank | runs |",
        "| --- | --- | --- |",
        "| a | 4.5 (4 to 5) | 2 |",
        "| b | 7 | 1 |",
    ]


def test_tables_may_be_empty(tmp_path):
    assert tables.markdown([]) == "There is none of this."
    tables.write_csv(tmp_path / "none.csv", [])
    assert tables.read_csv(tmp_path / "none.csv") == []

"""When a rank is called best, and ours better than its controls: each verdict turned both ways by made-up runs."""

import json
import math
import sys
from dataclasses import asdict

import converged
import converged_report
import pytest
import study
import tables
from converged_study import FASHION_MNIST, NARROW, OURS, PLAIN, Setting, missing
from converged_verdicts import (
    AGAINST,
    HOLDS,
    OPEN,
    at_best,
    at_equal,
    best_of,
    best_rank,
    cells_at,
    controls,
    gain_line,
    time_line,
    together,
    width_line,
)

ACCURACY, DISTANCE = "probe/10/as_is", "frechet/classifier/gaussian"
STEPS = 30_000
GAINS = (0.01, 0.03, 0.1, 0.3, 1.0)
#: Of ours by gain, and of the plain network; the largest gain has more than the plain network.
RANKS, PLAIN_RANK = (8, 16, 32, 44, 60), 48


def rows(setting, rank, value, measure=ACCURACY, steps=STEPS, error=5.0, seeds=5, noise=0.001):
    """Runs of a setting whose values differ by seed, in the same way for all settings of one family."""
    wobble = noise * (1 if setting.family == "ours" else -1)
    return [
        asdict(setting)
        | {"seed": seed, "steps": steps, "rank/effective": float(rank), "val/error": error, "train/seconds": 120.0}
        | {measure: value + wobble * (seed - (seeds - 1) / 2)}
        for seed in range(seeds)
    ]


def gains(*values, plain=0.5, **options):
    """Ours over gains, and the plain network."""
    made = [rows(OURS[4, gain], rank, v, **options) for gain, rank, v in zip(GAINS, RANKS, values, strict=True)]
    return sum(made, rows(PLAIN, PLAIN_RANK, plain, **options))


def on_gains(*values, measure=ACCURACY, **options):
    return best_rank(gain_line(cells_at(gains(*values, measure=measure, **options), STEPS)), measure)


def test_the_best_between_the_ends_is_a_best_rank():
    found = on_gains(0.5, 0.7, 0.6, 0.55, 0.4)
    assert found.verdict == HOLDS
    assert found.best.gain == 0.03
    leads = {name: round(mean, 3) for name, (mean, _) in found.leads.items()}
    assert leads == {"plain": 0.2, "ours 4 layers, gain 0.01": 0.2, "ours 4 layers, gain 1": 0.3}


def test_of_distances_the_smallest_is_best():
    assert on_gains(9.0, 3.0, 4.0, 5.0, 7.0, plain=6.0, measure=DISTANCE).verdict == HOLDS
    assert on_gains(3.0, 4.0, 5.0, 6.0, 9.0, plain=7.0, measure=DISTANCE).verdict == AGAINST


@pytest.mark.parametrize(
    ("values", "plain"),
    [
        ((0.8, 0.7, 0.6, 0.55, 0.4), 0.5),  # the lowest rank
        ((0.5, 0.7, 0.6, 0.55, 0.8), 0.5),  # the highest
        ((0.5, 0.7, 0.6, 0.55, 0.4), 0.8),  # the plain network, though its rank is between
    ],
)
def test_an_end_that_leads_all_between_speaks_against_it(values, plain):
    assert on_gains(*values, plain=plain).verdict == AGAINST


def test_what_is_within_its_interval_shows_nothing():
    assert on_gains(0.5, 0.7, 0.6, 0.55, 0.4, plain=0.69, noise=0.02).verdict == OPEN
    assert on_gains(0.7, 0.7, 0.6, 0.55, 0.4).verdict == OPEN
    assert on_gains(0.71, 0.7, 0.6, 0.55, 0.4, noise=0.0).verdict == AGAINST


@pytest.mark.parametrize(("seeds", "verdict"), [(2, OPEN), (3, HOLDS)])
def test_two_seeds_show_nothing(seeds, verdict):
    assert on_gains(0.5, 0.7, 0.6, 0.55, 0.4, seeds=seeds, noise=0.0).verdict == verdict


def test_leads_are_paired_by_seed():
    """What the seeds of one family have in common cancels out."""
    made = [
        row for k, v in ((1, 0.5), (2, 0.7), (3, 0.6)) for row in rows(Setting("narrow", 4 * k), 4 * k, v, noise=0.2)
    ]
    assert best_rank(width_line(cells_at(made, STEPS)), ACCURACY).verdict == HOLDS


def test_a_line_of_one_or_two_settings_shows_nothing():
    assert best_rank(gain_line(cells_at(rows(PLAIN, 48, 0.5), STEPS)), ACCURACY).verdict == OPEN
    assert best_rank([], ACCURACY).verdict == OPEN


def test_collapsed_settings_are_left_out():
    made = gains(0.5, 0.7, 0.6, 0.55, 0.4)
    for row in made:
        if row["gain"] == 0.01:
            del row[ACCURACY]
    found = best_rank(gain_line(cells_at(made, STEPS)), ACCURACY)
    assert list(found.leads) == ["ours 4 layers, gain 0.03", "plain", "ours 4 layers, gain 1"]
    assert found.best.gain == 0.1


def against(ours, below, above, measure=ACCURACY, family="narrow", **options):
    """Ours at rank 16, and a control at 8 and 32."""
    made = rows(OURS[4, 0.1], 16, ours, measure, **options)
    made += rows(Setting(family, 8), 8, below, measure, **options)
    made += rows(Setting(family, 32), 32, above, measure, **options)
    cells = cells_at(made, STEPS)
    (own,) = (cell for cell in cells if cell.family == "ours")
    return at_equal(own, controls(made, STEPS)[family], measure)


def test_at_equal_rank_the_control_is_interpolated():
    found = against(0.7, 0.5, 0.6)
    assert found.verdict == HOLDS
    assert found.leads[""][0] == pytest.approx(0.15), "16 is halfway from 8 to 32 in the logarithm"


@pytest.mark.parametrize("family", ["narrow", "truncated", "irmae"])
@pytest.mark.parametrize(
    ("ours", "verdict"), [(0.6, HOLDS), (0.55, OPEN), (0.5, AGAINST)], ids=["better", "as good", "worse"]
)
def test_ours_against_a_control_at_equal_rank(family, ours, verdict):
    assert against(ours, 0.5, 0.6, family=family).verdict == verdict


def test_smaller_distances_at_equal_rank_are_better():
    assert against(3.0, 5.0, 6.0, measure=DISTANCE).verdict == HOLDS
    assert against(7.0, 5.0, 6.0, measure=DISTANCE).verdict == AGAINST


def test_two_seeds_at_equal_rank_show_nothing():
    assert against(0.7, 0.5, 0.6, seeds=2, noise=0.0).verdict == OPEN


def test_a_control_that_does_not_reach_the_rank_of_ours_shows_nothing():
    made = rows(OURS[4, 0.1], 16, 0.9) + rows(NARROW[8], 8, 0.5)
    (ours, *_) = cells_at(made, STEPS)
    assert at_equal(ours, controls(made, STEPS)["narrow"], ACCURACY).verdict == OPEN
    made += rows(PLAIN, 48, 0.6)
    assert at_equal(ours, controls(made, STEPS)["narrow"], ACCURACY).verdict == HOLDS, "the plain network ends it"


@pytest.mark.parametrize(("ours", "verdict"), [(0.8, HOLDS), (0.6585, OPEN), (0.6, AGAINST)])
def test_early_stopping_is_compared_at_equal_error(ours, verdict):
    """The ranks would say otherwise: at that of ours the plain network is at .5."""
    made = rows(OURS[4, 0.1], 16, ours, error=6.0)
    for steps, rank, error, value in ((2_000, 16, 16.0, 0.5), (10_000, 30, 8.0, 0.7), (STEPS, 48, 4.0, 0.6)):
        made += rows(PLAIN, rank, value, steps=steps, error=error)
    made += rows(PLAIN, 50, 0.9, steps=100_000, error=5.0)  # later than ours
    own, _ = cells_at(made, STEPS)[::-1]
    assert at_equal(own, controls(made, STEPS)["stopped"], ACCURACY, "val/error").verdict == verdict


def test_best_against_best():
    ours = cells_at(gains(0.5, 0.7, 0.6, 0.55, 0.4), STEPS)[1:]
    assert best_of(ours, ACCURACY).gain == 0.03
    narrow = [cells_at(rows(NARROW[width], width, v), STEPS)[0] for width, v in ((8, 0.6), (16, 0.65))]
    found = at_best(ours, narrow, ACCURACY)
    assert found.verdict == HOLDS
    assert found.leads["plain, narrower (width 16)"][0] == pytest.approx(0.05)
    better = cells_at(rows(NARROW[32], 32, 0.75), STEPS)
    assert at_best(ours, [*narrow, *better], ACCURACY).verdict == AGAINST
    assert at_best(ours, [], ACCURACY).verdict == OPEN


def test_measures_of_one_purpose_have_to_agree():
    assert together([HOLDS, HOLDS]) == HOLDS
    assert together([AGAINST, AGAINST]) == AGAINST
    assert together([HOLDS, OPEN]) == OPEN
    assert together([HOLDS, AGAINST]) == OPEN
    assert together([]) == OPEN


def test_the_plain_network_over_its_stops_is_a_line():
    course = ((2_000, 16, 0.5), (10_000, 30, 0.7), (STEPS, 48, 0.6), (100_000, 50, 0.9))
    line = time_line([row for steps, rank, v in course for row in rows(PLAIN, rank, v, steps=steps)], STEPS)
    assert [cell.name for cell in line] == ["plain at 2,000 steps", "plain at 10,000 steps", "plain at 30,000 steps"]
    assert best_rank(line, ACCURACY).verdict == HOLDS


def test_the_report_says_what_is_missing():
    wanted = [(setting, seed, stop) for setting, seed, stops in FASHION_MNIST.jobs() for stop in stops]
    made = [asdict(setting) | {"seed": seed, "steps": stop} for setting, seed, stop in dict.fromkeys(wanted)]
    assert missing(FASHION_MNIST, made).startswith(f"All {len(made)} stops")
    assert f"{len(made)} of {len(made)} stops, of 90 runs, are missing" in missing(FASHION_MNIST, [])
    assert "1 of" in missing(FASHION_MNIST, made[1:])


def test_what_tells_most_is_trained_first():
    jobs = list(FASHION_MNIST.jobs())
    assert len(jobs) == 5 * 18 + 5 * 4
    assert len({(setting, seed, tuple(stops)) for setting, seed, stops in jobs}) == len(jobs)
    assert [seed for _, seed, _ in jobs[: 3 * 18]] == [0] * 18 + [1] * 10 + [2] * 10 + [1] * 8 + [2] * 8
    assert {100_000 in stops for *_, stops in jobs[3 * 18 : 3 * 18 + 8]} == {True}
    assert jobs[0] == (PLAIN, 0, [2_000, 4_000, 6_000, 8_000, 10_000, 15_000, 20_000, 30_000])


def test_the_report_holds_the_verdicts():
    made = gains(0.5, 0.7, 0.6, 0.55, 0.4) + rows(NARROW[8], 8, 0.9) + rows(NARROW[32], 32, 0.9)
    made = [row | {"probe/10/standardized": row[ACCURACY]} for row in made]
    body = converged_report.body(made, STEPS, "settings", "nothing is missing")
    purpose = next(line for line in body.splitlines() if line.startswith("| classification with 10"))
    assert purpose.strip("| ").split(" | ")[1:] == [HOLDS, OPEN, OPEN, OPEN, AGAINST, OPEN, OPEN]
    assert "| 10 a class, as they are | ours over gains | ours 4 layers, gain 0.03: 0.7" in body
    assert "-0.2 ± 0.0039: does not hold" in body
    assert "Training to 30,000 steps took 2 minutes a run" in body
    assert "Of the depth nothing is said" in body
    assert converged_report.times([{"steps": STEPS, "rank/effective": 3.0}], STEPS) == "", "a table of before"


def depths(*ranks, family="ours", gain=0.1, **options):
    """A family at 2, 4 and 8 layers."""
    settings = [Setting(family, depth=depth, gain=gain) for depth in (2, 4, 8)]
    return [row for setting, rank in zip(settings, ranks, strict=True) for row in rows(setting, rank, 0.5, **options)]


@pytest.mark.parametrize(
    ("ranks", "told"),
    [
        ((6, 6.3, 6.6), "depth: holds.**"),
        ((6, 6.3, 6.7), "depth: holds within limits.**"),
        ((9.1, 8, 6), "depth: does not hold.**"),
    ],
)
def test_independence_of_the_depth(ranks, told):
    made = depths(*ranks) + depths(3, 3, 3, gain=0.03) + depths(6, 3, 1, family="irmae", gain=None)
    text = converged_report.depth_verdict(made, STEPS)
    assert told in text
    assert f"by a factor of 1.00 (ours, gain 0.03), {max(ranks) / min(ranks):.2f} (ours, gain 0.1), 6.00 (IRM" in text
    header, _, *lines = converged_report.depth_table(made, [STEPS]).splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["| ours, gain 0.03", "| ours, gain 0.1", "| IRMAE style"]
    assert lines[-1].endswith(f"| 6 ± 0 | 3 ± 0 | 1 ± 0 | 6 | {1 / 6:.3g} ± 0 |")
    assert {line.count("|") for line in lines} == {header.count("|")}


def test_a_collapse_changes_the_rank_without_bound():
    assert "does not hold.**" in converged_report.depth_verdict(depths(4, 4, 0), STEPS)
    assert "inf (ours, gain 0.1)" in converged_report.depth_verdict(depths(4, 4, 0), STEPS)


def test_the_interval_of_the_ratio_of_depths_is_told():
    made = depths(4, 4, 4, seeds=3)
    for row, rank in zip([row for row in made if row["depth"] == 8], (4.0, 5.0, 6.0), strict=True):
        row["rank/effective"] = rank
    # Ratios 1, 1.25 and 1.5: deviation .25, Student's t 4.303 at 2 degrees of freedom.
    reach = 1.25 + 4.303 * 0.25 / 3**0.5
    assert f"up to {reach:.2f} times" in " ".join(converged_report.depth_verdict(made, STEPS).split())


def test_growth_counts_the_settings_that_are_at_both_stops():
    made = [
        row
        for steps, settings in ((2_000, (4, 6, 7)), (STEPS, (8, 5)))
        for width, rank in zip((8, 16, 32), settings, strict=False)
        for row in rows(NARROW[width], rank, 0.5, steps=steps)
    ]
    text = " ".join(converged_report.growth(made, STEPS).split())
    assert "grows** in 1 of 2 settings, from 2,000 to 30,000 steps: 4 to 8 (plain, narrower (width 8)), 6 to 5" in text


def test_curves_of_one_training_stand_beside_networks_trained_at_each_width():
    made = rows(PLAIN, 48, 5.0, measure="test/error") + rows(NARROW[8], 8, 9.0, measure="test/error")
    made = [row | ({"cut/8/error": 11.0, "cut/32/error": 6.0} if row["family"] == "plain" else {}) for row in made]
    _, _, plain, trained = converged_report.curves(made, STEPS).splitlines()
    assert plain.startswith("| plain | 11 ± 0 | 5 ±")
    assert trained.startswith("| plain, trained at that width | 9 ±")


def test_the_report_is_made_of_what_lies_in_a_folder(tmp_path, monkeypatch):
    runs = tmp_path / "runs" / "any-seed0"
    runs.mkdir(parents=True)
    for k, row in enumerate(gains(0.5, 0.7, 0.6, 0.55, 0.4) + rows(NARROW[8], 8, 0.6)):
        (runs / f"{k}.json").write_text(json.dumps(row))
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks/converged.py", "--report", "--output-dir", str(runs.parent)])
    converged.STUDY.main()
    written = sorted(path.name for path in (tmp_path / "converged").iterdir())
    assert written == ["README.md", "against_rank.png", "over_steps.png", "runs.csv"]
    assert "**Not finished: " in (tmp_path / "converged" / "README.md").read_text()
    assert len(tables.read_csv(tmp_path / "converged" / "runs.csv")) == 35


def test_a_report_keeps_the_runs_that_it_had(tmp_path, monkeypatch):
    """What was measured on another machine, or is no longer there, stays; what is measured anew replaces it."""
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    full = {"spectrum": [1.0, 0.5], "cut/1/error": 9.0, "test/error": 5.0, "probe/10/as_is/draws": [0.1, 0.2]}

    def report(made):
        folder = tmp_path / "runs" / "any-seed0"
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        for k, row in enumerate(made):
            (folder / f"{k}.json").write_text(json.dumps(row))
        monkeypatch.setattr(sys, "argv", ["converged.py", "--report", "--output-dir", str(folder.parent)])
        converged.STUDY.main()
        return (tmp_path / "converged" / "README.md").read_text()

    made = [row | full for row in gains(0.5, 0.7, 0.6, 0.55, 0.4)] + rows(NARROW[8], 8, 0.6)
    whole = report(made)
    assert report([]) == whole, "from the table alone"
    report(rows(NARROW[8], 8, 0.9))
    kept = tables.read_csv(tmp_path / "converged" / "runs.csv")
    assert len(kept) == len(made)
    assert [round(row[ACCURACY], 2) for row in kept if row["family"] == "narrow"] == [0.9] * 5


def test_what_a_cut_to_the_numerical_rank_costs():
    row = {"spectrum": [1.0, 0.5, 0.2, 0.05], "test/error": 10.0, "cut/1/error": 40.0, "cut/2/error": 20.0}
    assert converged_report.cost_of_cut(row, 0.5) == pytest.approx(3.0)
    assert converged_report.cost_of_cut(row, 0.1) == pytest.approx(1.0)
    half_way = math.log(3 / 2) / math.log(4 / 2)  # three directions, between two and all four
    assert converged_report.cost_of_cut(row, 0.01) == pytest.approx((20 - 10 * half_way) / 10 - 1)
    assert converged_report.cost_of_cut(row, 1e-3) == 0
    table = converged_report.thresholds([row, row | {"cut/2/error": 15.0}, {"no": "cuts"}])
    assert "| 0.03 | 2 |" in table

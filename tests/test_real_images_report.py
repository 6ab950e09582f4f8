"""When a rank is called best, and when independent of the depth."""

import pytest
from cells import Cell
from real_images_report import (
    change,
    depth_line,
    depth_table,
    depth_verdict,
    growth,
    optima_table,
    optimum,
    optimum_verdict,
)

ACCURACY, DISTANCE = "probe/all", "frechet/classifier/gaussian"


def cell(family, rank, value, measure=ACCURACY, depth=4, gain=None, noise=0.001):
    """Three runs around a value; the noise is the same for all cells but for its sign at one seed."""
    runs = {
        seed: {"rank/numerical": rank, "rank/effective": float(rank), measure: value + noise * (seed - 1)}
        for seed in range(3)
    }
    return Cell(family, f"{rank}", depth, gain, runs)


def line(*values, measure=ACCURACY, **options):
    """Ours at ranks 2, 4, ... and the plain network at the highest."""
    cells = [cell("ours", 2 * k, v, measure, gain=0.1 * k, **options) for k, v in enumerate(values[:-1], 1)]
    return [*cells, cell("plain", 2 * len(values), values[-1], measure, depth=0, **options)]


CONTROLS = [cell("irmae", 4, 0.6), cell("narrow", 4, 0.61), cell("truncated", 4, 0.5), cell("plain_l2", 4, 0.62)]


def test_best_inside_and_above_all_rivals_stands_out():
    found = optimum(ACCURACY, line(0.5, 0.7, 0.6), CONTROLS)
    assert found.best.runs[0]["rank/numerical"] == 4
    assert {name: round(lead[0], 3) for name, lead in found.leads.items()} == {
        "lowest rank": 0.2,
        "highest rank": 0.1,
        "IRMAE style": 0.1,
        "plain, narrower": 0.09,
        "plain, truncated": 0.2,
        "plain, L2": 0.08,
    }
    assert found.stands_out


@pytest.mark.parametrize("values", [(0.5, 0.6, 0.7), (0.7, 0.6, 0.5)])
def test_an_end_of_the_line_never_stands_out(values):
    assert not optimum(ACCURACY, line(*values), []).stands_out


@pytest.mark.parametrize("family", ["irmae", "narrow", "truncated", "plain_l2", "ours_l2"])
def test_a_control_as_good_forbids_it(family):
    assert not optimum(ACCURACY, line(0.5, 0.7, 0.6), [*CONTROLS, cell(family, 4, 0.7)]).stands_out


def test_a_lead_within_its_interval_does_not_stand_out():
    cells = line(0.5, 0.7, 0.6)
    cells[-1].runs[2][ACCURACY] = 0.75  # plain is better at one seed: +.1, +.1, -.049
    assert not optimum(ACCURACY, cells, CONTROLS).stands_out


def test_leads_are_paired_by_seed():
    """What seeds have in common cancels out."""
    assert optimum(ACCURACY, line(0.5, 0.7, 0.69, noise=0.2), []).stands_out


def test_one_seed_is_no_evidence():
    cells = line(0.5, 0.7, 0.6)
    for some in cells:
        del some.runs[1], some.runs[2]
    assert not optimum(ACCURACY, cells, []).stands_out


def test_smaller_distances_are_better():
    found = optimum(DISTANCE, line(9.0, 3.0, 5.0, measure=DISTANCE), [])
    assert found.best.runs[0]["rank/numerical"] == 4
    assert found.leads["highest rank"][0] == pytest.approx(2)
    assert found.stands_out


def test_a_control_counts_by_the_runs_that_did_not_collapse():
    cells = line(0.5, 0.7, 0.6)
    collapsed = cell("irmae", 1, 0.9)
    del collapsed.runs[0][ACCURACY]
    found = optimum(ACCURACY, cells, [collapsed, cell("irmae", 4, 0.6)])
    assert found.leads["IRMAE style"][0] == pytest.approx(-0.2)
    assert not found.stands_out


def test_a_control_that_collapsed_in_all_runs_is_no_rival():
    collapsed = cell("plain_l2", 0, 0.9)
    for run in collapsed.runs.values():
        del run[ACCURACY]
    found = optimum(ACCURACY, line(0.5, 0.7, 0.6), [*CONTROLS[:3], collapsed])
    assert "plain, L2" not in found.leads
    assert found.stands_out
    header, _, *rows = optima_table([found, optimum(ACCURACY, line(0.5, 0.7, 0.6), CONTROLS)]).splitlines()
    assert "over plain, L2" in header
    assert "not measured" in rows[0]
    assert {row.count("|") for row in rows} == {header.count("|")}


def test_the_plain_network_is_the_upper_end_whatever_its_rank():
    cells = line(0.5, 0.6, 0.7)
    for run in cells[-1].runs.values():
        run["rank/numerical"] = 3
    assert optimum(ACCURACY, cells, []).leads["highest rank"] is None


@pytest.mark.parametrize(
    ("now", "later", "verdict"),
    [
        ([(0.5, 0.7, 0.6)] * 2, [(0.5, 0.7, 0.6)] * 2, "classification: holds."),
        ([(0.5, 0.7, 0.6)] * 2, [(0.5, 0.7, 0.6), (0.5, 0.6, 0.7)], "not shown"),
        ([(0.5, 0.7, 0.6), (0.5, 0.6, 0.7)], [(0.5, 0.7, 0.6)] * 2, "not shown"),
        ([(0.5, 0.8, 0.7, 0.6)] * 2, [(0.5, 0.7, 0.8, 0.6)] * 2, "not shown"),  # it moved
        ([(0.5, 0.6, 0.7)] * 2, [(0.5, 0.7, 0.6)] * 2, "does not hold here"),
        ([(0.7, 0.6, 0.5)] * 2, [(0.5, 0.7, 0.6)] * 2, "does not hold here"),
        ([(0.5, 0.6, 0.7), (0.5, 0.7, 0.7)], [(0.5, 0.7, 0.6)] * 2, "not shown"),
    ],
)
def test_verdict_on_a_best_rank(now, later, verdict):
    found, after = ([optimum(ACCURACY, line(*values), []) for values in some] for some in (now, later))
    assert verdict in optimum_verdict("classification", found, after)


def test_what_is_within_its_interval_is_no_evidence_for_a_verdict():
    best, end_best = line(0.5, 0.7, 0.6), line(0.5, 0.6, 0.7)
    noisy, noisy_end = line(0.5, 0.7, 0.6), line(0.5, 0.6, 0.7)
    noisy[1].runs[2][ACCURACY], noisy_end[2].runs[2][ACCURACY] = 0.55, 0.55  # the same are best by mean
    best, end_best, noisy, noisy_end = ([optimum(ACCURACY, some, [])] for some in (best, end_best, noisy, noisy_end))
    assert noisy[0].best.name == best[0].best.name
    assert noisy_end[0].best.name == end_best[0].best.name
    assert "holds." in optimum_verdict("sampling", best, best)
    assert "not shown" in optimum_verdict("sampling", best, noisy)
    assert "does not hold here" in optimum_verdict("sampling", end_best, best)
    assert "not shown" in optimum_verdict("sampling", noisy_end, best)


def test_growth_counts_settings_of_both_lengths():
    truncated = cell("truncated", 4, 0.5)
    for run in truncated.runs.values():
        del run["rank/effective"]
    before = [cell("ours", 4, 0.5), cell("ours", 6, 0.5), truncated]
    after = [Cell("ours", name, 4, None, cell("ours", rank, 0.5).runs) for name, rank in (("4", 8), ("6", 5), ("9", 9))]
    assert "grows** in 1 of 2 settings: from 4 to 8 (ours 4), 6 to 5 (ours 6)." in growth(before, after)


@pytest.mark.parametrize(
    ("ranks", "later", "verdict"),
    [
        ((6, 6.3, 6.6), (6, 6, 6), "depth: holds."),
        ((6, 6.3, 6.7), (6, 6, 6), "holds within limits"),
        ((6, 6, 6), (9, 7, 6), "holds within limits"),
        ((6, 8, 9.1), (6, 6, 6), "does not hold here"),
    ],
)
def test_independence_of_depth(ranks, later, verdict):
    irmae = [cell("irmae", rank, 0.5, depth=depth) for depth, rank in zip((2, 4, 8), (6, 3, 1), strict=True)]
    ours, longer = (
        [cell("ours", rank, 0.5, depth=depth, gain=0.1) for depth, rank in zip((2, 4, 8), some, strict=True)]
        for some in (ranks, later)
    )
    text = depth_verdict([*irmae, *ours], longer)
    assert verdict in text
    assert f"{max(ranks) / min(ranks):.2f} at gain 0.1" in text
    assert "IRMAE style by 6." in text
    header, _, *rows = depth_table([*irmae, *ours]).splitlines()
    assert rows[0].endswith(f"| 6 | {1 / 6:.3g} ± 0 |")
    assert {row.count("|") for row in rows} == {header.count("|")}


def test_a_collapse_changes_the_rank_without_bound():
    assert change([cell("irmae", 4, 0.5), cell("irmae", 0, 0.5)]) == float("inf")


def test_intervals_of_the_ratio_are_told():
    ours = [cell("ours", 4, 0.5, depth=depth, gain=0.1) for depth in (2, 4, 8)]
    for seed, rank in enumerate((4.0, 5.0, 6.0)):
        ours[2].runs[seed]["rank/effective"] = rank
    irmae = [cell("irmae", 4, 0.5, depth=depth) for depth in (2, 4, 8)]
    # Ratios 1, 1.25 and 1.5: deviation .25, Student's t 4.303 at 2 degrees of freedom.
    assert f"reach up to {1.25 + 4.303 * 0.25 / 3**0.5:.2f}" in depth_verdict([*irmae, *ours], ours)


def test_the_line_is_that_of_one_depth():
    cells = [cell("ours", 4, 0.5, depth=depth, gain=0.1) for depth in (2, 4, 8)] + [cell("plain", 9, 0.5, depth=0)]
    cells.append(cell("ours", 3, 0.5, depth=4, gain=0.03))
    assert depth_line([*cells, *CONTROLS], 4) == [cells[4], cells[1], cells[3]]

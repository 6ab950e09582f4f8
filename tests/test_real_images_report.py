"""When a rank is called best, and when independent of the depth."""

import pytest
from real_images_report import Cell, depth_line, depth_verdict, optimum, optimum_verdict

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
        "the lowest rank": 0.2,
        "the highest rank": 0.1,
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
    assert found.leads["the highest rank"][0] == pytest.approx(2)
    assert found.stands_out


def test_collapsed_runs_are_left_out():
    cells = line(0.5, 0.7, 0.6)
    collapsed = cell("irmae", 1, 0.9)
    del collapsed.runs[0][ACCURACY]
    found = optimum(ACCURACY, cells, [collapsed, cell("irmae", 4, 0.6)])
    assert found.leads["IRMAE style"][0] == pytest.approx(0.1)


def test_a_best_rank_must_outlast_longer_training():
    best, not_best = (optimum(ACCURACY, line(*values), []) for values in ((0.5, 0.7, 0.6), (0.5, 0.6, 0.7)))
    assert "holds by probe, all labels" in optimum_verdict("classification", [ACCURACY], [best], [best])
    assert "does not hold here" in optimum_verdict("classification", [ACCURACY], [best], [not_best])
    assert "does not hold here" in optimum_verdict("classification", [ACCURACY], [not_best], [best])


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


def test_the_line_is_that_of_one_depth():
    cells = [cell("ours", 4, 0.5, depth=depth, gain=0.1) for depth in (2, 4, 8)] + [cell("plain", 9, 0.5, depth=0)]
    assert depth_line([*cells, *CONTROLS], 4) == [cells[1], cells[3]]

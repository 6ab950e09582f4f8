"""Verdicts of the studies are those of their figures: the committed ones give what reports say, others turn them."""

import copy
import math

import depth_coordinate_check
import gain_corrected_rate
import greedy_learning
import l2_nonlinear
import pytest
import rank_fixed_point
import rank_window
import stable_rate
import study
import synthetic_recovery
import tables

LIMITS = "holds within limits"


def committed(program, *names):
    """The committed table of a study, or several."""
    found = [tables.read_csv(study.RESULTS / program.STUDY.name / f"{name}.csv") for name in names]
    return found if len(found) > 1 else found[0]


def changed(rows, change, **where):
    """A copy of a table in which some rows are changed."""
    rows = copy.deepcopy(rows)
    some = [row for row in rows if all(row[key] == value for key, value in where.items())]
    assert some, where
    for row in some:
        row |= change
    return rows


@pytest.mark.parametrize(
    ("program", "names"),
    [
        (depth_coordinate_check, ["updates"]),
        (gain_corrected_rate, ["runs"]),
        (greedy_learning, ["half_times"]),
        (l2_nonlinear, ["runs"]),
        (rank_window, ["windows"]),
        (rank_fixed_point, ["runs", "gain_0.03", "cut"]),
        (stable_rate, ["runs"]),
        (synthetic_recovery, ["runs"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_reports_say_what_their_figures_give(program, names):
    """Paragraph by paragraph."""
    report = " ".join((study.RESULTS / program.STUDY.name / "README.md").read_text().split())
    for paragraph in program.STUDY.verdict(*(committed(program, name) for name in names)).split("\n\n"):
        assert " ".join(paragraph.split()) in report


def test_updates_over_depth():
    rows = committed(depth_coordinate_check, "updates")
    where = {"scaling": "lr / depth", "depth": 8, "seed": 31}

    def judged(change, optimizer):
        table = changed(rows, {"one_step": change}, optimizer=optimizer, **where)
        return [depth_coordinate_check.judged(table, names)[0] for names in (("SGD", "Muon"), ("Adam", "RMSprop"))]

    assert judged(1.0, "SGD") == ["holds", LIMITS]
    assert judged(0.95, "SGD") == [LIMITS, LIMITS]
    assert judged(2.0, "SGD") == ["does not hold", LIMITS]
    assert judged(0.7, "Adam") == ["holds", "does not hold"]
    assert judged(math.nan, "Adam") == ["holds", "does not hold"]
    text = depth_coordinate_check.verdict(changed(rows, {"one_step": 0.5}, optimizer="Muon", **where))
    assert "**Verdict: does not hold**" in text
    assert "**holds within limits** for Adam" in text


def test_the_correction_by_the_gain():
    rows = committed(gain_corrected_rate, "runs")
    good = {"found": 8, "excess": 1.0}
    all_right = [row | good for row in rows]
    assert gain_corrected_rate.judged(all_right) == "holds"
    assert "the correction holds**" in gain_corrected_rate.verdict(all_right)
    assert "Stability" not in gain_corrected_rate.verdict(all_right)
    one_wrong = [row if row["rule"] == "1 / N" and row["seed"] == 35 else row | good for row in rows]
    one_wrong = changed(one_wrong, {"found": 3}, depth=4, seed=36, optimizer="Adam")  # with the correction and without
    assert gain_corrected_rate.judged(one_wrong) == LIMITS
    assert gain_corrected_rate.judged(rows) == "does not hold"
    assert gain_corrected_rate.judged([row | {"found": 3} for row in rows]) == "does not hold", "nothing works"


def test_one_direction_after_another():
    rows = committed(greedy_learning, "half_times")
    aligned, usual, adam = (
        {"run": run, "depth": 4, "variance": 0.5}
        for run in (greedy_learning.ALIGNED, greedy_learning.USUAL, greedy_learning.ADAM)
    )

    def words(table):
        return [line.split("**")[1] for line in greedy_learning.verdict(table).splitlines() if line.startswith("- **")]

    assert words(rows) == ["Holds", "Holds within limits", "Holds within limits"]
    late = changed(rows, {"half_time": 20.0}, **aligned)  # of 15.4 predicted
    assert words(late)[0] == "Holds within limits"
    assert words(changed(rows, {"half_time": 40.0}, **aligned))[0] == "Does not hold", "after the next one"
    assert words(changed(rows, {"largest_error_of_gain": 0.2}, **aligned))[0] == "Holds within limits"
    assert words(changed(rows, {"half_time": 1.0}, **usual))[1] == "Does not hold", "before the first one"
    assert words(changed(rows, {"predicted_half_time": 5.0}, **usual))[1] == "Does not hold", "far from the law"
    assert words(changed(rows, {"half_time": 1.0}, **adam))[2] == "Does not hold"
    at_once = changed(rows, {"half_time": 30.0}, run=greedy_learning.ADAM)
    assert words(at_once)[2] == "Does not hold", "all at the same time"
    assert words(changed(rows, {"half_time": math.inf}, **usual))[1] == "Does not hold", "never"


def test_the_cut_of_decay_in_a_nonlinear_autoencoder():
    rows = committed(l2_nonlinear, "runs")
    as_predicted = [row | {"found": row["predicted"]} if row["network"] == "MLP" else row for row in rows]
    assert l2_nonlinear.judged(as_predicted) == "carries over"
    assert "the prediction carries over.**" in l2_nonlinear.verdict(as_predicted)
    mostly = changed(as_predicted, {"found": 0}, network="MLP", cutoff=0.1, depth=4)
    assert l2_nonlinear.judged(mostly) == "carries over within limits"
    missed = changed(mostly, {"found": 0}, network="MLP", cutoff=0.1)
    assert l2_nonlinear.judged(changed(missed, {"found": 0}, network="MLP", depth=0)) == "does not carry over"


def test_the_window_of_the_rank():
    rows = committed(rank_window, "windows")
    lasting = [row | {"window_ends": math.inf, "found": row["rank"]} for row in rows]
    assert rank_window.judged(lasting) == "holds"
    assert "**Verdict: holds**. Under" in rank_window.window_verdict(lasting, 20_000)
    assert rank_window.judged(changed(lasting, {"found": 32}, setting="Adam", depth=2, seed=50)) == LIMITS
    never = changed(rows, {"window_starts": math.inf}, setting="Adam", depth=2, seed=50)
    assert rank_window.judged(never) == "does not hold"
    assert "Under Adam 33 of 36" in " ".join(rank_window.window_verdict(never, 20_000).split())


def test_the_rule_that_stops():
    rows = committed(rank_window, "windows")
    right = [row | {"stopped_at_rank": row["rank"]} for row in rows]
    assert rank_window.stop_judged(right) == "holds"
    assert "Not shipped" not in rank_window.stop_verdict(right)
    assert (
        rank_window.stop_judged(changed(right, {"stopped_at_rank": None}, setting=rank_window.NOISY, seed=51)) == LIMITS
    )
    assert rank_window.stop_judged(changed(right, {"stopped_at_rank": 32}, setting="Adam", seed=51)) == "does not hold"


def test_the_rank_as_a_fixed_point():
    rows = committed(rank_fixed_point, "runs")
    assert rank_fixed_point.judged(changed(rows, {"found": 32}, depth=0)) == "holds", "the control"
    assert rank_fixed_point.judged(changed(rows, {"excess": 1.2}, depth=4, seed=20)) == LIMITS
    assert rank_fixed_point.judged(changed(rows, {"found": 32}, depth=4, seed=20, noise=0.1)) == LIMITS
    assert rank_fixed_point.judged(changed(rows, {"found": 32}, depth=4)) == "does not hold"


def test_whether_depth_is_what_holds_the_rank():
    rows = committed(rank_fixed_point, "runs")
    assert "**Depth is not what holds it.** Without linear layers L2 holds it in all runs of 3 of 4 controls" in (
        " ".join(rank_fixed_point.control_verdict(rows).split())
    )
    lost = changed(rows, {"found": 32}, depth=0)
    text = " ".join(rank_fixed_point.control_verdict(lost).split())
    assert text.startswith("**Depth is what holds it.** Without linear layers L2 holds it in all runs of 0 of 4")
    assert "at noise 0.1 in 0 of 27 runs at the same decay" in text
    once = changed(rows, {"found": 32}, depth=0, noise=0.05, seed=20)
    assert "1 of 4 controls" in " ".join(rank_fixed_point.control_verdict(once).split()), "of all runs, that is"


def test_a_start_from_a_small_gain():
    rows = committed(rank_fixed_point, "gain_0.03")
    assert rank_fixed_point.start_verdict(rows).startswith("It has to start from gain 1.")
    kept = [row | {"found": row["rank"]} for row in rows]
    assert rank_fixed_point.start_verdict(kept).startswith("It may start from a small gain.")
    assert "27 of 27 and lower in 0." in rank_fixed_point.start_verdict(kept)


def test_where_decay_cuts():
    rows = committed(rank_fixed_point, "cut")
    as_predicted = [row | {"gain": row["predicted"]} for row in rows]
    assert rank_fixed_point.cut_judged(as_predicted) == "holds"
    assert "**Verdict: holds.**" in rank_fixed_point.cut_verdict(as_predicted)
    kept = changed(as_predicted, {"gain": 0.5}, predicted=0, depth=4, seed=20)
    assert rank_fixed_point.cut_judged(kept) == "does not hold", "more than predicted"
    assert rank_fixed_point.cut_judged(changed(as_predicted, {"gain": 0.0}, depth=4)) == "does not hold"


def test_rates_that_train_at_all_depths():
    rows = committed(stable_rate, "runs")
    assert [stable_rate.judged(rows, name) for name in stable_rate.CRITERIA] == [LIMITS, "does not hold"]
    cut = changed(rows, {"excess": 9.0}, scaling="lr / depth", optimizer="Adam", depth=16, lr=0.064)
    cut = changed(cut, {"excess": 9.0}, scaling="lr / depth", optimizer="SGD, momentum 0.9", depth=16, lr=0.32)
    assert stable_rate.judged(cut, "trains") == "holds", "the highest is the same at all depths"
    assert "all depths: holds**" in stable_rate.verdict(cut)
    worse = changed(rows, {"excess": 9.0}, scaling="lr / depth", optimizer="Adam", depth=2, lr=0.016)
    assert stable_rate.judged(worse, "trains") == "does not hold"


def test_recovery_of_the_rank():
    rows = committed(synthetic_recovery, "runs")
    required = "**Verdict: holds**"
    ours = {"variant": "ours", "depth": 4, "rank": 8, "seed": 10}
    assert synthetic_recovery.verdict(changed(rows, {"found": 9}, **ours)).startswith(required), "35 of 36"
    twice = changed(rows, {"found": 9}, variant="ours", depth=4, rank=8)
    assert synthetic_recovery.verdict(twice).startswith("**Verdict: does not hold**")
    assert synthetic_recovery.verdict(changed(rows, {"excess": 1.1}, **ours)).startswith("**Verdict: does not hold**")
    text = " ".join(synthetic_recovery.verdict(rows).split())
    assert "small gain is needed" in text
    assert "learning rate is not needed" in text
    without = changed(rows, {"found": 32}, variant="orthogonal, unscaled", depth=16)
    assert "learning rate is needed" in " ".join(synthetic_recovery.verdict(without).split())

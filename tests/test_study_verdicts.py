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
import report

LIMITS = "holds within limits"


def committed(program, file_name):
    return report.read_csv(program.NAME, file_name)


def changed(rows, change, **where):
    """A copy of a table in which some rows are changed."""
    rows = copy.deepcopy(rows)
    some = [row for row in rows if all(row[key] == value for key, value in where.items())]
    assert some, where
    for row in some:
        row |= change
    return rows


@pytest.mark.parametrize(
    ("program", "file_name", "told"),
    [
        (depth_coordinate_check, "updates.csv", depth_coordinate_check.verdict),
        (gain_corrected_rate, "runs.csv", gain_corrected_rate.verdict),
        (greedy_learning, "half_times.csv", greedy_learning.verdicts),
        (l2_nonlinear, "runs.csv", l2_nonlinear.verdict),
        (rank_window, "windows.csv", lambda rows: rank_window.verdict(rows, 20_000)),
        (rank_window, "windows.csv", rank_window.stop_verdict),
        (rank_fixed_point, "cut.csv", rank_fixed_point.cut_verdict),
        (rank_fixed_point, "runs.csv", lambda rows: f"**Verdict: {rank_fixed_point.judged(rows)}** for linear"),
    ],
)
def test_reports_say_what_their_figures_give(program, file_name, told):
    text = (report.RESULTS / program.NAME / "README.md").read_text()
    assert " ".join(told(committed(program, file_name)).split()) in " ".join(text.split())


def test_updates_over_depth():
    rows = committed(depth_coordinate_check, "updates.csv")
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
    rows = committed(gain_corrected_rate, "runs.csv")
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
    rows = committed(greedy_learning, "half_times.csv")
    aligned, usual, adam = (
        {"run": run, "depth": 4, "variance": 0.5}
        for run in (greedy_learning.ALIGNED, greedy_learning.USUAL, greedy_learning.ADAM)
    )

    def words(table):
        return [line.split("**")[1] for line in greedy_learning.verdicts(table).splitlines() if line.startswith("- **")]

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
    rows = committed(l2_nonlinear, "runs.csv")
    as_predicted = [row | {"found": row["predicted"]} if row["network"] == "MLP" else row for row in rows]
    assert l2_nonlinear.judged(as_predicted) == "carries over"
    assert "the prediction carries over.**" in l2_nonlinear.verdict(as_predicted)
    mostly = changed(as_predicted, {"found": 0}, network="MLP", cutoff=0.1, depth=4)
    assert l2_nonlinear.judged(mostly) == "carries over within limits"
    missed = changed(mostly, {"found": 0}, network="MLP", cutoff=0.1)
    assert l2_nonlinear.judged(changed(missed, {"found": 0}, network="MLP", depth=0)) == "does not carry over"


def test_the_window_of_the_rank():
    rows = committed(rank_window, "windows.csv")
    lasting = [row | {"window_ends": math.inf, "found": row["rank"]} for row in rows]
    assert rank_window.judged(lasting) == "holds"
    assert "**Verdict: holds**. Under" in rank_window.verdict(lasting, 20_000)
    assert rank_window.judged(changed(lasting, {"found": 32}, setting="Adam", depth=2, seed=50)) == LIMITS
    never = changed(rows, {"window_starts": math.inf}, setting="Adam", depth=2, seed=50)
    assert rank_window.judged(never) == "does not hold"
    assert "Under Adam 33 of 36" in " ".join(rank_window.verdict(never, 20_000).split())


def test_the_rule_that_stops():
    rows = committed(rank_window, "windows.csv")
    right = [row | {"stopped_at_rank": row["rank"]} for row in rows]
    assert rank_window.stop_judged(right) == "holds"
    assert "Not shipped" not in rank_window.stop_verdict(right)
    assert (
        rank_window.stop_judged(changed(right, {"stopped_at_rank": None}, setting=rank_window.NOISY, seed=51)) == LIMITS
    )
    assert rank_window.stop_judged(changed(right, {"stopped_at_rank": 32}, setting="Adam", seed=51)) == "does not hold"


def test_the_rank_as_a_fixed_point():
    rows = committed(rank_fixed_point, "runs.csv")
    assert rank_fixed_point.judged(changed(rows, {"found": 32}, depth=0)) == "holds", "the control"
    assert rank_fixed_point.judged(changed(rows, {"excess": 1.2}, depth=4, seed=20)) == LIMITS
    assert rank_fixed_point.judged(changed(rows, {"found": 32}, depth=4, seed=20, noise=0.1)) == LIMITS
    assert rank_fixed_point.judged(changed(rows, {"found": 32}, depth=4)) == "does not hold"


def test_where_decay_cuts():
    rows = committed(rank_fixed_point, "cut.csv")
    as_predicted = [row | {"gain": row["predicted"]} for row in rows]
    assert rank_fixed_point.cut_judged(as_predicted) == "holds"
    assert "**Verdict: holds.**" in rank_fixed_point.cut_verdict(as_predicted)
    kept = changed(as_predicted, {"gain": 0.5}, predicted=0, depth=4, seed=20)
    assert rank_fixed_point.cut_judged(kept) == "does not hold", "more than predicted"
    assert rank_fixed_point.cut_judged(changed(as_predicted, {"gain": 0.0}, depth=4)) == "does not hold"

"""The range of learning rates that train, or find the rank."""

import math

from stable_rate import RANK, TRAINED, change, finds_rank, good_range, ranges, table, trains


def runs(*excesses, found=RANK, **settings):
    """Two seeds at the rates 1, 2, 4, ...: the error of the second is given, the first is right."""
    errors = [(2.0**k, seed, error) for k, e in enumerate(excesses) for seed, error in enumerate((1.0, e))]
    return [{"lr": lr, "seed": seed, "excess": error, "found": found, **settings} for lr, seed, error in errors]


def test_all_seeds_must_train():
    assert good_range(runs(3.0, TRAINED, 1.0, 0.8, TRAINED + 0.01), trains) == [2, 4, 8]


def test_the_range_ends_at_the_first_gap():
    assert good_range(runs(1.0, 1.0, math.nan, 1.0), trains) == [1, 2]


def test_a_rank_too_high_trains_and_is_not_found():
    rows = runs(0.8, 0.7, found=RANK + 1)
    assert good_range(rows, trains) == [1, 2]
    assert good_range(rows, finds_rank) == []


def test_a_depth_at_which_none_trains_is_no_agreement():
    assert change({2: [], 4: [1.0, 2.0]}) == change({2: [1.0, 2.0], 4: []}) == math.inf


def test_table_says_how_the_highest_rate_changes():
    rows = runs(2.0, 1.0, 1.0, 2.0, optimizer="Adam", scaling="one lr", depth=2)
    rows += runs(1.0, 1.0, 2.0, 2.0, optimizer="Adam", scaling="one lr", depth=8)
    assert ranges(rows, "Adam", "one lr", "trains") == {2: [2, 4], 8: [1, 2]}
    assert table(rows, "trains").splitlines()[-1] == "| Adam | one lr | 2 to 4 | 1 to 2 | 2 to 2 | 2 |"
    rows += runs(2.0, 2.0, optimizer="Adam", scaling="one lr", depth=16)
    assert table(rows, "trains").splitlines()[-1] == "| Adam | one lr | 2 to 4 | 1 to 2 | none | none | inf |"

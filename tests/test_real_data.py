"""The trainer on real images, end to end, on the CPU: ``python -m pytest -m slow``.

CIFAR-10 as JPEG files, ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg``, is looked for in the folder that the environment
variable ``CIFAR10_JPEG`` names, Fashion-MNIST in the one that ``FASHION_MNIST`` names or where Debian's package
``dataset-fashion-mnist`` puts it.
"""

import csv
import os
from pathlib import Path

import pytest
import rank_sweep

LIMITS = ["--limit-train-batches", "20", "--limit-val-batches", "2", "--limit-test-batches", "2", "--max-epochs", "3"]
PLACES = {
    "folder": ("CIFAR10_JPEG", "data/cifar10_jpeg", "train"),
    "fashion_mnist": ("FASHION_MNIST", "/usr/share/datasets/fashion-mnist", "train-images-idx3-ubyte.gz"),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PLACES)
def test_real_images_end_in_a_report(name, tmp_path):
    variable, usual, expected = PLACES[name]
    place = Path(os.environ.get(variable, usual))
    if not (place / expected).exists():
        pytest.skip(f"{variable}: no {expected} in {place}")
    arguments = ["--data", name, "--data-dir", str(place), "--depths", "0", "4", "--logger", "none", *LIMITS]
    results = rank_sweep.main([*arguments, "--accelerator", "cpu", "--output-dir", str(tmp_path)])
    assert [row["method"] for row in results] == ["plain", "irmae", "ours"]
    for row in results:
        assert row["rank/samples"] == 2 * 4 * 128
        assert row["history"][-1]["epoch"] == 2
        # Better than the mean image would be a matter of longer training; better than chance is not.
        assert row["probe/all"] > 0.15
        assert row["frechet/classifier/mixture"] > 0
    plain, irmae, ours = (row["rank/effective"] for row in results)
    assert max(irmae, ours) < plain
    with (tmp_path / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == 2 + 2 + 2 + 1 + 6 + 3 * 4
    assert 'src="runs' not in page

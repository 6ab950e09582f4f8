"""What the example trainer measures at the end of a run, against answers known from elsewhere."""

import itertools

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from scipy.linalg import sqrtm
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from lightning_rank import attach_linear_bottleneck, truncate_linear_bottleneck
from rank_trainer import data
from rank_trainer.data import TensorDataModule
from rank_trainer.evaluation import AutoencoderEvaluation, encode, sample_quality
from rank_trainer.evaluation.probes import INVERSE_REGULARIZATIONS, linear_probe


def blobs(n, spread=1.0, seed=0, classes=3, dim=8):
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, dim, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(n) % classes
    return centres[labels] + spread * torch.randn(n, dim, generator=generator), labels


def test_a_probe_is_chosen_on_validation_data_and_reported_on_test_data():
    # Few noisy training samples, so that the strength matters.
    train, val, test = (blobs(n, spread=3.0, seed=70 + k) for k, n in enumerate((24, 300, 300)))
    scaler = StandardScaler().fit(train[0].double().numpy())
    scores = []
    for strength in INVERSE_REGULARIZATIONS:
        probe = LogisticRegression(C=strength, max_iter=200).fit(scaler.transform(train[0].double()), train[1])
        scores.append([probe.score(scaler.transform(x.double()), y) for x, y in (val, test)])
    chosen = int(np.argmax([val_score for val_score, _ in scores]))
    assert len({test_score for _, test_score in scores}) > 2
    assert max(test_score for _, test_score in scores) > scores[chosen][1], "the best test score is not the one chosen"
    assert linear_probe(train, val, test) == pytest.approx(scores[chosen][1], abs=0.004)


def test_a_probe_may_take_latents_as_they_are():
    train, val, test = (blobs(n, spread=3.0, seed=70 + k) for k, n in enumerate((24, 300, 300)))
    shrink = torch.tensor([1.0] * 4 + [1e-3] * 4)
    shrunk = [(x * shrink, y) for x, y in (train, val, test)]
    assert linear_probe(*shrunk) == pytest.approx(linear_probe(train, val, test), abs=0.01)
    probe = LogisticRegression(C=0.1, max_iter=200).fit(shrunk[0][0].double(), train[1])
    as_they_are = linear_probe(*shrunk, standardize=False, inverse_regularizations=[0.1])
    assert as_they_are == pytest.approx(probe.score(shrunk[2][0].double(), test[1]), abs=0.004)
    assert as_they_are < linear_probe(*shrunk) - 0.05


def test_a_probe_with_few_labels_gets_as_many_of_each_class():
    train, val, test = (blobs(n, seed=k) for k, n in enumerate((300, 90, 90)))
    assert linear_probe(train, val, test, per_class=10) > 0.9
    assert linear_probe(train, val, test, per_class=101) is None, "there are 100 of each"
    # Only the samples drawn count: with all the others relabelled the probe must not notice.
    drawn = linear_probe(train, val, test, per_class=1, seed=3)
    assert drawn == linear_probe(train, val, test, per_class=1, seed=3)
    assert len({linear_probe(train, val, test, per_class=1, seed=k) for k in range(6)}) > 1
    assert linear_probe((train[0], torch.zeros_like(train[1])), val, test) is None


def test_the_distance_is_that_of_the_formula():
    classifier = nn.Sequential(nn.Identity(), nn.Linear(sample_quality.FEATURES, 3))
    distance = sample_quality.classifier_distance(classifier)
    real = torch.randn(500, sample_quality.FEATURES)
    fake = torch.randn(400, sample_quality.FEATURES) * 1.5 + 0.3
    distance.update(real, real=True)
    distance.update(fake, real=False)
    covariances = [np.cov(rows.double().numpy().T) for rows in (real, fake)]
    means = real.double().mean(0) - fake.double().mean(0)
    expected = float(means @ means) + np.trace(
        covariances[0] + covariances[1] - 2 * sqrtm(covariances[0] @ covariances[1]).real
    )
    assert float(distance.compute()) == pytest.approx(expected, rel=1e-4)
    distance.reset()
    distance.update(real, real=False)
    assert float(distance.compute()) == pytest.approx(0, abs=1e-2), "the test images are still in it"


def test_without_inception_there_is_no_fid(monkeypatch, capsys):
    def refuse(error):
        def construct(*args, **kwargs):
            raise error

        monkeypatch.setattr(sample_quality, "FrechetInceptionDistance", construct)

    refuse(ModuleNotFoundError("torch-fidelity"))
    assert sample_quality.inception_distance() is None
    refuse(OSError("Name or service not known"))
    assert sample_quality.inception_distance() is None
    assert "the weights of Inception cannot be had (Name or service not known); frechet/classifier takes its place" in (
        capsys.readouterr().out
    )


def test_the_classifier_is_good_and_trained_once(tmp_path):
    digits = data.digits()

    def accuracy(classifier):
        images, labels = digits.val.tensors
        return (classifier(images).argmax(1) == labels).double().mean()

    path = tmp_path / "not yet there" / "classifier.pt"
    first = sample_quality.train_classifier(digits.train_dataloader, torch.device("cpu"), path)
    assert accuracy(first) > 0.93
    again = sample_quality.train_classifier(digits.val_dataloader, torch.device("cpu"), path)
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_classifier_of_few_batches_meets_the_same_ones_in_every_pass(tmp_path):
    def first_batch():
        return itertools.islice(data.digits(batch_size=1).train_dataloader(), 1)  # of some classes only

    sample_quality.train_classifier(first_batch, torch.device("cpu"), tmp_path / "classifier.pt")


class Planar(LightningModule):
    """Takes the first two of four numbers, and puts them back."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
        self.encoder.weight.data = torch.eye(4)[:2]
        self.decoder.weight.data = torch.eye(4)[:, :2]

    def forward(self, x):
        return self.decoder(self.encoder(x))


def planar(weight):
    module = attach_linear_bottleneck(Planar(), dim=2, depth=1)
    module.encoder.linear_bottleneck.layers[0].weight.data = torch.tensor(weight)
    return module


def four_numbers(n, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + 0.1 * torch.randn(n, 4, generator=generator) * torch.tensor(spread), torch.arange(n) % 2


def evaluated(tmp_path, module, train=(1.0, 1.0, 1.0, 1.0), sizes=(256, 64, 100), **options):
    spreads = (train, (1.0,) * 4, (1.0,) * 4)
    parts = [four_numbers(n, spread, k) for k, (n, spread) in enumerate(zip(sizes, spreads, strict=True))]
    datamodule = TensorDataModule(*parts, batch_size=16, image_shape=(1, 2, 2))
    return AutoencoderEvaluation(datamodule, tmp_path / "classifier.pt", **options)(module, tmp_path), parts


def test_error_is_that_of_the_whole_test_split(tmp_path):
    result, (*_, (rows, _)) = evaluated(tmp_path, planar([[1.0, 0.0], [0.0, 1.0]]))
    assert result["test/error"] == pytest.approx(float(rows[:, 2:].double().square().sum(1).mean()), rel=1e-6)
    assert result["samples/count"] == 100
    assert {"probe/all", "probe/100", "probe/10", "frechet/classifier/gaussian", "frechet/classifier/mixture"} < {
        *result
    }
    assert not any("fid" in key for key in result)
    assert {path.stem for path in tmp_path.glob("*.png")} == {
        "reconstructions",
        "samples_gaussian",
        "samples_mixture",
        "interpolations",
    }


def test_error_with_fewer_directions_is_that_of_the_truncated_module(tmp_path):
    # The first number varies most in the training data, so that the second is lost: its training mean takes its place.
    result, ((train, _), _, (rows, _)) = evaluated(
        tmp_path, planar([[1.0, 0.0], [0.0, 1.0]]), train=(9.0, 1.0, 1.0, 1.0)
    )
    module = planar([[1.0, 0.0], [0.0, 1.0]])
    truncate_linear_bottleneck(module, [train], rank=1)
    with torch.no_grad():
        lost = (module(rows) - rows).double().square().sum(1).mean()
    assert result["cut/1/error"] == pytest.approx(lost.item(), rel=1e-5)
    assert result["cut/1/error"] > result["test/error"] + 0.005
    assert "cut/2/error" not in result
    cut, _ = evaluated(tmp_path, module)
    assert not any(key.startswith("cut/") for key in cut), "cut already"


def test_limits_count_batches(tmp_path):
    result, (*_, (rows, _)) = evaluated(tmp_path, planar([[1.0, 0.0], [0.0, 1.0]]), limits={"test": 1, "train": 0.25})
    assert result["samples/count"] == 64
    assert result["test/error"] == pytest.approx(float(rows[:64, 2:].double().square().sum(1).mean()), rel=1e-6)
    few, _ = evaluated(tmp_path, planar([[1.0, 0.0], [0.0, 1.0]]), limits={"test": 0.01})
    assert few["samples/count"] == 64, "a batch at least"


@pytest.mark.parametrize(("test_images", "pairs"), [(2, 1), (3, 1), (6, 3), (100, 4)])
def test_of_few_images_is_measured_what_can_be(tmp_path, test_images, pairs):
    result, _ = evaluated(tmp_path, planar([[1.0, 0.0], [0.0, 1.0]]), sizes=(9, 4, test_images))
    assert "frechet/classifier/gaussian" in result
    assert "frechet/classifier/mixture" not in result, "of nine latents there is no mixture of ten"
    with Image.open(tmp_path / "interpolations.png") as picture:
        height = picture.height
    assert height == pairs * (2 * 24 + 2) + 2, "a row a pair, of images enlarged 24 times, with lines of 2 pixels"


def test_everything_is_measured_behind_the_bottleneck(tmp_path):
    module = planar([[1.0, 0.0], [0.0, 0.0]])
    rows = four_numbers(50, (1.0,) * 4, 0)[0]
    assert torch.equal(encode(module, iter([[rows]])).latents, rows[:, :2] * torch.tensor([1.0, 0.0]))
    assert evaluated(tmp_path, module)[0]["samples/rank"] == 1


def test_samples_are_fitted_to_training_latents(tmp_path):
    module = planar([[1.0, 0.0], [0.0, 1.0]])
    assert evaluated(tmp_path, module)[0]["samples/rank"] == 2
    assert evaluated(tmp_path, module, train=(1.0, 0.0, 1.0, 1.0))[0]["samples/rank"] == 1


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_collapsed_or_diverged_run_has_an_error_and_nothing_else(tmp_path, value):
    result, _ = evaluated(tmp_path, planar([[value, 0.0], [0.0, value]]))
    assert list(result) == ["test/error"]


def test_what_is_drawn_depends_on_the_seed_alone(tmp_path):
    module = planar([[1.0, 0.0], [0.0, 1.0]])
    first, _ = evaluated(tmp_path, module)
    before = torch.random.get_rng_state()
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    assert evaluated(tmp_path, module)[0] == first
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers go on as they would have"
    torch.random.set_rng_state(before)


def test_latents_that_are_no_vectors_are_refused():
    module = planar([[1.0, 0.0], [0.0, 1.0]])
    rows = four_numbers(50, (1.0,) * 4, 0)[0]
    with pytest.raises(ValueError, match=r"module: expected latents of shape \(B, dim\), got \(B, 5, 2\)"):
        encode(module, iter([[rows.reshape(10, 5, 4)]]))

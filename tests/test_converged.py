"""Runs that go on as if they had not been stopped, and what is measured of them."""

import gzip
import json
from pathlib import Path

import converged_images
import pytest
import torch
from converged import batch_indices, network, optimizer_of, rows_of, run
from converged_images import Images
from converged_measures import Measures, both_ways, truncated
from converged_study import IRMAE, NARROW, OURS, PLAIN, PLANS, Plan, Setting
from PIL import Image
from torch import nn

TINY = Plan(
    name="tiny",
    title="Tiny",
    about="Random",
    read=lambda directory: Fake().images,
    network=lambda dim: converged_images.mlp(16, (8, 6), dim),
    settings=[PLAIN, OURS[4, 0.1]],
    telling=2,
    stops=(3, 300),
    plain_stops=(5,),
    cuts=(2,),
    longer=[],
    longest=301,
    seeds=1,
)


class Fake:
    """Measures the error on validation images alone, and may be interrupted."""

    def __init__(self, interrupt_at=None):
        generator = torch.Generator().manual_seed(1)
        made = {
            name: (torch.rand(n, 16, generator=generator), torch.zeros(n)) for name, n in (("train", 300), ("val", 50))
        }
        self.images = Images(made, (1, 4, 4))
        self.calls, self.interrupt_at = 0, interrupt_at

    def __call__(self, encode, decode, seed):
        self.calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        x = self.images.splits["val"][0]
        with torch.no_grad():
            return {"val/error": (decode(encode(x)) - x).square().sum().item(), "width": encode(x).shape[1]}


def timeless(directory):
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows_of(directory)]


@pytest.mark.parametrize("interrupt_at", [1, 2, 3, 4])
def test_a_run_that_was_interrupted_ends_as_the_unbroken_one(interrupt_at, tmp_path):
    stops = [3, 5, 300]
    run(TINY, PLAIN, 0, stops, Fake(), tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        run(TINY, PLAIN, 0, stops, Fake(interrupt_at), tmp_path / "broken")
    run(TINY, PLAIN, 0, stops, Fake(), tmp_path / "broken")
    rows = timeless(tmp_path / "unbroken")
    assert timeless(tmp_path / "broken") == rows
    assert [(row["family"], row["steps"]) for row in rows] == [
        ("plain", 3),
        ("truncated", 300),
        ("plain", 300),
        ("plain", 5),
    ]
    assert rows[2]["val/error"] < rows[0]["val/error"]


def test_a_later_stop_goes_on_from_the_last_one(tmp_path):
    setting = OURS[4, 0.1]
    run(TINY, setting, 0, [3, 300, 310], Fake(), tmp_path / "at once")
    run(TINY, setting, 0, [3, 300], Fake(), tmp_path / "later")
    run(TINY, setting, 0, [3, 300, 310], Fake(), tmp_path / "later")
    assert timeless(tmp_path / "later") == timeless(tmp_path / "at once")


def test_what_is_there_is_not_measured_again(tmp_path):
    run(TINY, PLAIN, 0, [3, 5], Fake(), tmp_path)
    again = Fake()
    run(TINY, PLAIN, 0, [3, 5], again, tmp_path)
    assert again.calls == 0


def test_a_pass_holds_each_image_once_and_is_known_from_the_step_alone():
    whole = list(batch_indices(300, 7, 0, 6))
    assert sorted(torch.cat(whole[:2]).tolist()) == sorted(set(torch.cat(whole[:2]).tolist()))
    assert not torch.equal(whole[0], whole[2])
    for start in range(6):
        assert all(map(torch.equal, batch_indices(300, 7, start, 6), whole[start:]))


@pytest.mark.parametrize("plan", [TINY, *PLANS.values()], ids=lambda plan: plan.name)
def test_with_one_seed_encoder_and_decoder_start_the_same(plan):
    made = []
    for setting in (PLAIN, OURS[4, 0.1], IRMAE[2]):
        torch.manual_seed(3)
        made.append(network(plan, setting))
    plain, ours, irmae = made
    for other in (ours, irmae):
        for part in (0, 2):
            assert all(map(torch.equal, plain[part].parameters(), other[part].parameters()))
    singular_values = torch.linalg.svdvals(ours[1].weight)
    torch.testing.assert_close(singular_values, torch.full_like(singular_values, 0.1))
    assert [layer.weight.std().item() for layer in irmae[1].layers] == pytest.approx([1 / 192**0.5] * 2, rel=0.1)


@pytest.mark.parametrize(
    ("setting", "rates"), [(PLAIN, [1e-3]), (OURS[4, 0.1], [1e-3, 2.5e-4]), (IRMAE[4], [1e-3, 1e-3])]
)
def test_only_ours_has_the_learning_rate_over_depth(setting, rates):
    optimizer = optimizer_of(network(TINY, setting), setting)
    assert [group["lr"] for group in optimizer.param_groups] == rates


def archive(directory, images):
    """Four IDX files whose images say what they are: the first pixel is the label, in the training split plus 100."""
    for name, n, offset in (("train", images, 100), ("t10k", 7, 0)):
        labels = bytes(k % 10 for k in range(n))
        pixels = b"".join(bytes([label + offset]) + bytes(783) for label in labels)
        (directory / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels))
        (directory / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels))


def test_validation_images_are_held_out_of_the_training_images(tmp_path, monkeypatch):
    monkeypatch.setattr(converged_images, "VALIDATION_IMAGES", 11)
    archive(tmp_path, 30)
    splits = converged_images.fashion_mnist(tmp_path).splits
    assert {name: len(labels) for name, (_, labels) in splits.items()} == {"train": 19, "val": 11, "test": 7}
    for name, offset in (("train", 100), ("val", 100), ("test", 0)):
        images, labels = splits[name]
        torch.testing.assert_close(images[:, 0] * 255, labels.float() + offset)
    both = torch.cat([splits["train"][1], splits["val"][1]])
    assert both.bincount().tolist() == [3] * 10


def test_a_missing_archive_says_where_to_get_it(tmp_path):
    with pytest.raises(SystemExit, match=r"expected train-images-idx3-ubyte\.gz, "):
        converged_images.fashion_mnist(tmp_path)


@pytest.mark.parametrize(("name", "features"), [("fashion_mnist", 784), ("cifar10", 3072)])
def test_networks_of_rows(name, features):
    rows = torch.rand(3, features)
    encoder, bottleneck, decoder = network(PLANS[name], NARROW[8])
    latents = bottleneck(encoder(rows))
    assert latents.shape == (3, 8)
    assert decoder(latents).shape == rows.shape
    torch.testing.assert_close(decoder(latents[1:2]), decoder(latents)[1:2])


def test_cifar10_is_read_from_folders(tmp_path):
    """Each image is of one grey, known by its class and split; a tenth of those to train on is held out."""
    greys = {("train", "cat"): 40, ("train", "dog"): 80, ("test", "cat"): 120, ("test", "dog"): 160}
    for (split, label), grey in greys.items():
        (tmp_path / split / label).mkdir(parents=True)
        for k in range(10):
            Image.new("RGB", (32, 32), (grey + k,) * 3).save(tmp_path / split / label / f"{k}.png")
    images = converged_images.cifar10(tmp_path)
    assert {name: rows.shape for name, (rows, _) in images.splits.items()} == {
        "train": (18, 3072),
        "val": (2, 3072),
        "test": (20, 3072),
    }
    seen = {name: (255 * rows[:, 0]).round().int() for name, (rows, _) in images.splits.items()}
    torch.testing.assert_close(seen["test"] / 255, images.splits["test"][0][:, 0])
    assert sorted(torch.cat([seen["train"], seen["val"]]).tolist()) == [*range(40, 50), *range(80, 90)]
    assert torch.equal(images.splits["test"][1], (seen["test"] >= 160).long())
    assert images.for_features(images.splits["val"][0]).shape == (2, 3, 32, 32)


def test_missing_folders_say_what_is_expected(tmp_path):
    with pytest.raises(SystemExit, match="expected a folder of images for each class"):
        converged_images.cifar10(tmp_path / "none")


@pytest.fixture(scope="module")
def measures(tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "classifier.pt"
    return Measures(converged_images.digits(), path, draws=2)


def test_what_is_measured_of_latents_that_are_the_images(measures):
    found = measures(lambda x: x, lambda z: z, 0)
    assert found["test/error"] == 0
    deviations = measures.images.splits["val"][0].std(0, correction=0)
    assert sum(value**2 for value in found["spectrum"]) == pytest.approx(deviations.square().sum().item(), rel=1e-3)
    assert found["rank/numerical"] > 20
    assert found["probe/100/as_is"] > found["probe/10/as_is"] > 0.7
    assert found["probe/10/as_is"] == pytest.approx(sum(found["probe/10/as_is/draws"]) / 2)
    assert found["probe/10/as_is/draws"][0] != found["probe/10/as_is/draws"][1]
    assert 0 < found["frechet/classifier/mixture"] < found["frechet/classifier/gaussian"]


def test_probes_know_no_units_and_standardized_ones_no_directions(measures):
    """As they are, the directions of large variance count for more; standardized, none does."""
    project = torch.randn(64, 12, generator=torch.Generator().manual_seed(4))
    shrink = torch.ones(12)
    shrink[::2] = 1e-2
    found, scaled, uneven = (
        measures(lambda x, w=w: x @ project * w, lambda z: torch.zeros(len(z), 64), 0) for w in (1.0, 1e6, shrink)
    )
    for name in ("10", "100"):
        assert scaled[f"probe/{name}/as_is"] == pytest.approx(found[f"probe/{name}/as_is"], abs=0.01)
        assert uneven[f"probe/{name}/standardized"] == pytest.approx(found[f"probe/{name}/standardized"], abs=0.01)
    assert uneven["probe/10/as_is"] < found["probe/10/as_is"] - 0.03


def test_truncated_latents_are_their_leading_coordinates(measures):
    images = measures.images.splits["train"][0]
    mixing = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    whole = (lambda x: x @ mixing, lambda z: z @ torch.linalg.inv(mixing))
    full, cut = (truncated(*whole, whole[0](images), rank) for rank in (64, 3))
    torch.testing.assert_close(full[1](full[0](images)), images, atol=1e-3, rtol=0)
    assert measures(*cut, 0)["rank/numerical"] <= 3
    assert measures(*whole, 0)["cut/4/error"] == pytest.approx(
        measures(*truncated(*whole, whole[0](images), 4), 0)["test/error"]
    )
    latents, coordinates = whole[0](images), cut[0](images)
    centred = latents - latents.mean(0)
    kept = torch.linalg.svdvals(centred)[:3]
    torch.testing.assert_close(torch.linalg.svdvals(coordinates), kept, rtol=1e-3, atol=1e-3)


def test_collapsed_and_diverged_latents_have_neither_probes_nor_samples(measures):
    collapsed = measures(lambda x: torch.ones(len(x), 4), lambda z: torch.zeros(len(z), 64), 0)
    diverged = measures(lambda x: torch.full((len(x), 4), float("nan")), lambda z: torch.zeros(len(z), 64), 0)
    assert collapsed["collapsed"]
    assert collapsed["rank/numerical"] == 0
    assert diverged["diverged"]
    for found in (collapsed, diverged):
        assert found["test/error"] > 0
        assert not any(key.startswith(("probe", "frechet")) for key in found)
        json.dumps(found)


def test_the_bottleneck_belongs_to_the_encoder():
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 4))
    encode, decode = both_ways(module)
    x = torch.randn(5, 4)
    torch.testing.assert_close(encode(x), module[1](module[0](x)))
    torch.testing.assert_close(decode(encode(x)), module(x))


def test_names_of_folders_tell_settings_apart():
    settings = [PLAIN, *OURS.values(), *IRMAE.values(), Setting("narrow", 8)]
    assert len({setting.name for setting in settings}) == len(settings)
    assert Path(OURS[8, 0.03].name).name == "ours64-8layers-gain0.03"

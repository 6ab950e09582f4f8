"""The curve of EffectiveRankMonitor: of one fit, through checkpoints, in files, and home from other processes."""

import copy
import csv
import io
import itertools

import fsspec
import pytest
import tiny
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_rank import EffectiveRankMonitor, LatentTraversal
from lightning_rank.callbacks._history import Measure, RankHistory, Row


def fit(monitor, *callbacks, model=None, ckpt_path=None, **options):
    trainer = tiny.trainer(callbacks=[monitor, *callbacks], **options)
    trainer.fit(
        model or tiny.tiny(),
        tiny.loader(),
        tiny.loader(24, 8, seed=5),
        ckpt_path=ckpt_path,
        weights_only=bool(ckpt_path),
    )
    return trainer


def read(path):
    with fsspec.open(str(path), "r", newline="") as file:
        header, *rows = csv.reader(file)
    return header, [[float(value) for value in row] for row in rows]


def test_a_monitor_that_is_used_again_begins_anew_with_latents_of_another_width_too(tmp_path):
    class Narrow(tiny.TinyAutoencoder):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.Linear(tiny.FEATURES, 4), nn.Linear(4, tiny.FEATURES)

    monitor = EffectiveRankMonitor("encoder")
    for name, model, dim in (("wide", tiny.TinyAutoencoder(), tiny.DIM), ("narrow", Narrow(), 4)):
        fit(monitor, model=model, max_epochs=2, logger=CSVLogger(tmp_path, name))
        assert [row["epoch"] for row in monitor.history] == [0, 1]
        header, rows = read(tmp_path / name / "version_0/rank_spectra/latents_of_encoder.csv")
        assert len(header) == 2 + dim
        assert [row[:2] for row in rows] == [[0, 3], [1, 7]]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_files_are_appended_to_and_a_resumed_run_goes_on_where_its_checkpoint_was(tmp_path):
    class Crash(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 4:
                raise RuntimeError("on purpose")

    def run(directory, epochs, *callbacks, ckpt_path=None):
        checkpoint = ModelCheckpoint(directory, "{epoch}", save_top_k=-1, enable_version_counter=False)
        monitor = EffectiveRankMonitor()
        options = {"max_epochs": epochs, "logger": CSVLogger(directory), "enable_checkpointing": True}
        fit(monitor, checkpoint, *callbacks, ckpt_path=ckpt_path, **options)
        return monitor

    unbroken = run(tmp_path / "unbroken", 6)
    with pytest.raises(RuntimeError, match="on purpose"):
        run(tmp_path / "broken", 6, Crash())
    path = "broken/rank_spectra/latents_of_linear_bottleneck.csv"
    assert [row[0] for row in read(tmp_path / path)[1]] == [0, 1, 2, 3], "written before the crash"
    resumed = run(tmp_path / "broken", 6, ckpt_path=tmp_path / "broken/epoch=2.ckpt")
    assert resumed.history == unbroken.history
    assert read(tmp_path / path) == read(tmp_path / path.replace("broken", "unbroken"))
    # Elsewhere, the spectra in the checkpoint are all there is of what was before.
    run(tmp_path / "elsewhere", 6, ckpt_path=tmp_path / "broken/epoch=2.ckpt")
    assert [row[0] for row in read(tmp_path / path.replace("broken", "elsewhere"))[1]] == [0, 1, 2, 3, 4, 5]


def test_two_monitors_of_one_layer_have_a_file_each(tmp_path):
    layer = "encoder.linear_bottleneck"
    monitors = [EffectiveRankMonitor(layer), EffectiveRankMonitor([layer], max_rows=4)]
    fit(*monitors, logger=CSVLogger(tmp_path), max_epochs=2)
    directory = tmp_path / "lightning_logs/version_0/rank_spectra"
    weights = (f"composed_matrix_of_{layer}", f"rank_{layer}_weight_spectrum")
    latents = (f"latents_of_{layer}", f"rank_{layer}_spectrum")
    assert sorted(path.stem for path in directory.iterdir()) == sorted(weights + latents)
    for name, monitor in zip(latents, monitors, strict=True):
        _, rows = read(directory / f"{name}.csv")
        assert [row[0] for row in rows] == [0, 1]
        assert rows[-1][2:] == monitor.singular_values[layer].tolist()
    assert read(directory / f"{weights[0]}.csv") == read(directory / f"{weights[1]}.csv")


def long_history(epochs=10_000, dim=1024):
    history = RankHistory()
    names = ["effective", "participation", "stable", "alpha", "rankme", "condition", "weight_effective"]
    counts = ["numerical", "gap", "directions_95", "samples", "dropped_rows"]
    spectrum = torch.linspace(1, 0, dim, dtype=torch.float64)
    for epoch in range(epochs):
        values = {Measure("validate", "encoder", None, name): 1 / (epoch + 3) for name in names}
        values |= {Measure("validate", "encoder", None, name): float(epoch) for name in counts}
        spectra = {Measure("validate", "encoder", None, name): spectrum for name in ("", "weight_")}
        history.append(Row(epoch, 100 * epoch, values), spectra)
    return history


def test_ten_thousand_epochs_of_width_1024_take_less_than_a_mebibyte_in_a_checkpoint():
    history, file = long_history(), io.BytesIO()
    torch.save(history.state_dict(), file)
    assert file.tell() < 2**20
    file.seek(0)
    again = RankHistory.from_state_dict(torch.load(file, weights_only=True), ["encoder"])
    assert again.rows == history.rows
    for spectra in again.spectra.values():
        epochs = [spectrum.epoch for spectrum in spectra]
        gaps = [after - before for before, after in itertools.pairwise(epochs)]
        assert (epochs[0], epochs[-1]) == (0, 9_999)
        assert 12 <= len(epochs) <= 24
        assert max(gaps) <= 4 * min(gaps), "spread evenly"


def first_version(prefix):
    """The state of a callback of version 0.1."""
    spectrum = torch.linspace(1, 0, tiny.DIM, dtype=torch.float64)
    now = {"epoch": 0, "step": 4}
    rows = [now | {f"{prefix}effective": 4.5, f"{prefix}samples": 24.0, f"{prefix}weight_effective": 6.0}]
    spectra = {name: [now | {"singular_values": spectrum}] for name in (prefix, f"{prefix}weight_")}
    return {"rows": rows, "spectra": spectra}


@pytest.mark.parametrize("prefix", ["rank/", "rank/linear_bottleneck/"])
def test_the_curve_of_a_checkpoint_of_the_first_version_goes_on(prefix, tmp_path):
    monitor = EffectiveRankMonitor()
    trainer = fit(monitor, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "old.ckpt")
    old = torch.load(tmp_path / "old.ckpt", weights_only=False)
    key = "EffectiveRankMonitor{'layers': ['linear_bottleneck']}"
    assert key == monitor.state_key
    old["callbacks"][key] = first_version(prefix)
    torch.save(old, tmp_path / "old.ckpt")
    again = EffectiveRankMonitor()
    fit(again, max_epochs=2, ckpt_path=tmp_path / "old.ckpt")
    assert again.history[0] == {
        "epoch": 0,
        "step": 4,
        "rank/effective": 4.5,
        "rank/samples": 24,
        "rank/weight_effective": 6,
    }
    assert [row["epoch"] for row in again.history] == [0, 1]


@pytest.mark.parametrize(
    "state", [first_version("rank/decoder/"), {"something": 1}, {"validations": 1, "tables": [{}], "spectra": []}]
)
def test_a_state_that_does_not_fit_is_left_out_with_a_word(state):
    monitor = EffectiveRankMonitor()
    with pytest.warns(UserWarning, match="the curve in the checkpoint is left out: "):
        monitor.load_state_dict(state)
    fit(monitor, max_epochs=1)
    assert [row["epoch"] for row in monitor.history] == [0]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
def test_a_run_of_two_monitors_goes_on_with_one_and_with_three(tmp_path):
    def monitors(number):
        return [
            EffectiveRankMonitor(),
            EffectiveRankMonitor("decoder", name="out"),
            EffectiveRankMonitor("encoder", name="in", at="input"),
        ][:number]

    first = monitors(2)
    trainer = fit(*first, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    for number in (1, 3):
        again = monitors(number)
        fit(*again, max_epochs=2, ckpt_path=tmp_path / "two.ckpt")
        for monitor, before in zip(again, first, strict=False):
            assert [row["epoch"] for row in monitor.history] == [0, 1]
            assert monitor.history[0] == before.history[0]
        assert all([row["epoch"] for row in monitor.history] == [1] for monitor in again[2:])


def test_what_processes_found_out_that_were_launched_is_there_when_they_have_ended(tmp_path):
    monitor, twin = EffectiveRankMonitor(), None
    trainer = tiny.trainer(callbacks=[monitor], max_epochs=2, devices=2, strategy="ddp_fork")
    twin = copy.deepcopy(monitor)
    trainer.fit(tiny.tiny(), tiny.loader(), tiny.loader(23, 4, seed=5))
    assert [(row["epoch"], row["rank/samples"]) for row in monitor.history] == [(0, 23), (1, 23)]
    assert monitor.singular_values["linear_bottleneck"].shape == (tiny.DIM,)
    assert monitor.weight_singular_values["linear_bottleneck"].shape == (tiny.DIM,)
    assert monitor.history[-1]["rank/effective"] == pytest.approx(
        trainer.callback_metrics["rank/effective"].item(), rel=1e-6
    )
    assert twin.history == []
    fit(monitor, max_epochs=1)
    assert len(monitor.history) == 1, "the next fit is its own"


def test_files_go_wherever_checkpoints_can(tmp_path):
    store = "memory://runs"
    checkpoint, logger = ModelCheckpoint(f"{store}/checkpoints"), CSVLogger(tmp_path)
    traversal = LatentTraversal(image_shape=(1, 2, 5), every_n_epochs=2)
    monitor = EffectiveRankMonitor()
    fit(monitor, traversal, checkpoint, max_epochs=3, enable_checkpointing=True, logger=logger)
    _, rows = read(f"{store}/checkpoints/rank_spectra/latents_of_linear_bottleneck.csv")
    assert [row[:2] for row in rows] == [[0, 3], [1, 7], [2, 11]]
    torch.testing.assert_close(torch.tensor(rows[-1][2:]).double(), monitor.singular_values["linear_bottleneck"])
    pictures = fsspec.filesystem("memory").ls("/runs/checkpoints/latent_traversals", detail=False)
    assert sorted(path.rpartition("/")[2] for path in pictures) == [
        "linear_bottleneck-epoch=1-step=7.png",
        "linear_bottleneck-epoch=2-step=11.png",
    ]
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".png" or "rank_spectra" in path.parts]


def test_a_fast_development_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monitor = EffectiveRankMonitor()
    fit(monitor, LatentTraversal(image_shape=(1, 2, 5)), fast_dev_run=True, default_root_dir=tmp_path)
    assert len(monitor.history) == 1
    assert list(tmp_path.rglob("*")) == []

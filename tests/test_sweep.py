"""RankSweep in one process: which runs there are, what survives trouble, what is written."""

import errno
import itertools
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import rows
from torch.multiprocessing import ProcessRaisedException, start_processes
from torchvision.utils import save_image

from lightning_rank import DepthScaledLR, EffectiveRankMonitor, attach_linear_bottleneck
from lightning_rank.functional import weight_decay_for_variance_cutoff
from rank_trainer import Method, RankSweep, loggers
from rank_trainer.autoencoders import linear_autoencoder, mlp_autoencoder
from rank_trainer.callbacks import SaveTraining
from rank_trainer.data import DataError, TensorDataModule
from rank_trainer.failures import FirstProcessError, stops_all, told_in_process
from rank_trainer.runs import Run

FEATURES, DIM = 10, 6


def factory(**options):
    return linear_autoencoder(FEATURES, DIM, **options)


def sweep(directory, make_autoencoder=factory, **settings):
    splits = [(rows(32, seed),) for seed in (1, 2, 3)]
    defaults = {"depths": [0, 2], "max_epochs": 2, "logger": "none", "trainer_options": {"accelerator": "cpu"}}
    datamodule = TensorDataModule(*splits, batch_size=8)
    return RankSweep(make_autoencoder, datamodule, dim=DIM, output_dir=directory, name="tiny", **defaults | settings)


def test_runs_are_methods_depths_gains_and_seeds(tmp_path):
    runs = sweep(tmp_path, depths=[0, 2, 4], gains=[0.1, 0.3], seeds=[5, 6]).runs
    assert len(runs) == len(set(runs)) == 2 * (1 + 2 + 4)
    assert Run("ours", 4, 0.3, 6) in runs
    assert Run("irmae", 2, None, 5) in runs
    assert len({run.name for run in runs}) == len(runs)


def test_a_method_of_ones_own_is_five_lines(tmp_path):
    attach = partial(attach_linear_bottleneck, gain=1.0, init="default")
    scaled = Method("scaled", attach, callbacks=[DepthScaledLR])
    narrow = Method("narrow", takes_depth=False, options={"dim": 3})
    mine = sweep(tmp_path, partial(linear_autoencoder, FEATURES, dim=DIM), methods=["plain", narrow, scaled])
    plain, narrowed, low = mine.run()
    assert [plain["method"], narrowed["method"], low["method"]] == ["plain", "narrow", "scaled"]
    assert not mine.failures
    assert [len(row["singular_values"]) for row in (plain, narrowed, low)] == [6, 3, 6]
    (checkpoint,) = tmp_path.glob("runs/scaled-depth2-seed0-*/last.ckpt")
    rates = [group["lr"] for group in torch.load(checkpoint, weights_only=True)["optimizer_states"][0]["param_groups"]]
    assert rates == [1e-3, 1e-3 / 2], "its callback was at work"
    page = (tmp_path / "report.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in ("plain", "narrow", "scaled"))
    assert mine.trained(mine.runs[1]).decoder.weight.shape == (FEATURES, 3)


def test_methods_are_told_apart_by_their_names(tmp_path):
    with pytest.raises(ValueError, match="methods: expected a name for each, got two of 'plain'"):
        sweep(tmp_path, methods=["plain", Method("plain")])


def test_runs_of_earlier_versions_are_found(tmp_path):
    settings = {"dim": 4, "output_dir": tmp_path, "name": "here", "variance_rtol": 1e-2}
    given = {"trainer_options": {"accelerator": "cpu"}, "config": {"data": "digits"}}
    made = RankSweep(torch.nn.Identity, None, **settings, **given)
    assert [made.directory(run).name for run in made.runs[:5:2]] == [
        "plain-depth0-seed0-73f131",
        "irmae-depth4-seed0-1791b8",
        "ours-depth2-gain0.1-seed0-f9b0dd",
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_shards_train_every_run_once_and_the_last_one_reports_all(tmp_path, n):
    whole = sweep(tmp_path)
    seen = []
    for i in range(1, n + 1):
        shard = sweep(tmp_path, shard=(i, n))
        shard._attempt = lambda run, title: seen.append(run)
        shard.run()
    assert sorted(seen, key=whole.runs.index) == whole.runs


def test_a_sharded_sweep_reads_like_a_whole_one(tmp_path):
    for i in (1, 2):
        sweep(tmp_path, shard=(i, 2)).run()
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + 3


def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path, capsys):
    made = itertools.count()

    def fails_second():
        if next(made) == 1:
            raise RuntimeError("no such luck")
        return factory()

    first = sweep(tmp_path, fails_second)
    assert [result["method"] for result in first.run()] == ["plain", "ours"]
    assert first.failures == {Run("irmae", 2, None, 0): "RuntimeError: no such luck"}
    (trace,) = tmp_path.glob("runs/irmae*/error.txt")
    assert "fails_second" in trace.read_text()
    assert "failed: irmae-depth2-seed0: RuntimeError: no such luck" in capsys.readouterr().out
    again = sweep(tmp_path, factory)
    assert [result["method"] for result in again.run()] == ["plain", "irmae", "ours"]
    assert not again.failures
    assert not trace.exists()


def test_a_measurement_that_fails_keeps_the_training(tmp_path):
    def broken(module, directory, seed):
        raise ZeroDivisionError("measured nothing")

    failed = sweep(tmp_path, evaluate=broken, methods=["plain"])
    assert failed.run() == []
    assert list(failed.failures.values()) == ["ZeroDivisionError: measured nothing"]
    seen = []

    def weights(module, directory, seed):
        seen.append(module.encoder.weight.clone())
        return {"test/error": 1.0}

    (result,) = sweep(tmp_path, factory, evaluate=weights, methods=["plain"]).run()
    (checkpoint,) = tmp_path.glob("runs/plain*/last.ckpt")
    assert torch.equal(seen[0], torch.load(checkpoint, weights_only=True)["state_dict"]["encoder.weight"])
    assert result["test/error"] == 1.0
    assert len(result["history"]) == result["epochs"] == 2, "the curve of the training, not of none"


def test_a_run_that_a_callback_stopped_trains_no_more_when_only_its_measurement_failed(tmp_path):
    stops = Method("stops", callbacks=[lambda: EarlyStopping("rank/effective", mode="max", min_delta=1e9, patience=1)])
    measured = iter([ZeroDivisionError("measured nothing"), {"test/error": 1.0}])

    def once_broken(module, directory, seed):
        found = next(measured)
        if isinstance(found, Exception):
            raise found
        return found

    settings = {"methods": [stops], "max_epochs": 9, "evaluate": once_broken}
    assert sweep(tmp_path, **settings).run() == []
    (trained,) = tmp_path.glob("runs/stops*/trained.json")
    first = json.loads(trained.read_text())
    assert first["epochs"] == len(first["history"]) == 2
    (result,) = sweep(tmp_path, **settings).run()
    assert {key: result[key] for key in first} == first
    assert json.loads(trained.read_text()) == first


def test_the_seconds_of_a_run_are_those_of_all_its_parts(tmp_path):
    before = SaveTraining(EffectiveRankMonitor(), tmp_path)
    before.load_state_dict({"seconds": 100.0})
    before.on_train_start(None, None)
    assert 100 < before.seconds < 101
    after = SaveTraining(EffectiveRankMonitor(), tmp_path)
    after.load_state_dict(before.state_dict())
    assert after.seconds > 100
    (result,) = sweep(tmp_path, methods=["plain"]).run()
    (checkpoint,) = tmp_path.glob("runs/plain*/last.ckpt")
    kept = torch.load(checkpoint, weights_only=True)["callbacks"]["SaveTraining"]
    assert kept["seconds"] == pytest.approx(result["seconds"], abs=1)


def _damaged(rank):
    raise DataError("1.png: this image cannot be decoded\nreplace it")


def _full(rank):
    raise OSError(errno.ENOSPC, "No space left on device")


def _broken(rank):
    raise ValueError("no such luck")


@pytest.mark.parametrize(
    ("function", "kind", "told"),
    [
        (_damaged, DataError, "1.png: this image cannot be decoded\nreplace it"),
        (_full, OSError, "[Errno 28] No space left on device"),
        (_broken, FirstProcessError, "ValueError: no such luck"),
    ],
)
def test_what_a_launched_process_raised_is_told_as_if_it_were_this_one(function, kind, told):
    """Torch brings it home as a traceback in words."""
    with pytest.raises(ProcessRaisedException) as caught:
        start_processes(function, nprocs=1, start_method="fork")
    error = told_in_process(caught.value)
    assert (type(error), str(error)) == (kind, told)
    assert stops_all(error) is (function is not _broken)
    other = ValueError("of this process")
    assert told_in_process(other) is other


def test_the_command_that_uploads_can_be_pasted(tmp_path, capsys):
    (tmp_path / "a b/runs/one/wandb/offline-run-1").mkdir(parents=True)
    sweep(tmp_path / "a b", methods=["plain"]).run()
    assert f"wandb sync '{tmp_path}/a b'/runs/*/wandb/offline-run-*" in capsys.readouterr().out


def test_no_space_stops_the_sweep_and_loses_nothing_finished(tmp_path, monkeypatch):
    save, calls = Trainer.save_checkpoint, itertools.count()

    def full_disk(self, path, *args, **kwargs):
        if next(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, path, *args, **kwargs)

    monkeypatch.setattr(Trainer, "save_checkpoint", full_disk)
    stopped = sweep(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        stopped.run()
    monkeypatch.undo()
    assert [result["method"] for result in stopped.results()] == ["plain"]
    assert not list(tmp_path.rglob("*.partial"))
    assert len(sweep(tmp_path).run()) == 3


@pytest.mark.parametrize("length", [0, 100, 2000])
def test_a_run_whose_checkpoint_is_damaged_starts_anew(tmp_path, length):
    (first,) = sweep(tmp_path, methods=["plain"]).run()
    (result,) = tmp_path.glob("runs/*/result.json")
    result.unlink()
    checkpoint = result.with_name("last.ckpt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:length])
    with pytest.warns(UserWarning, match=r"last\.ckpt cannot be read, so its run starts anew"):
        (again,) = sweep(tmp_path, methods=["plain"]).run()
    assert {**again, "seconds": None} == {**first, "seconds": None}


@pytest.mark.parametrize("name", ["results.csv", "report.md", "report.html"])
def test_a_report_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch, name):
    sweep(tmp_path, methods=["plain"]).run()
    before = (tmp_path / name).read_text()
    write = Path.write_text

    def full_disk(self, text, *args, **kwargs):
        if self.name.startswith(name):
            write(self, text[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, text, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        sweep(tmp_path).run()
    assert (tmp_path / name).read_text() == before


def test_the_cutoff_is_the_decay_of_weights_at_gain_one(tmp_path):
    made = []

    def remembered(**options):
        made.append(options["weight_decay"])
        return factory(**options)

    sweep(tmp_path, remembered, variance_cutoff=0.02, gains=[1.0], depths=[0, 4]).run()
    expected = [weight_decay_for_variance_cutoff(0.02, depth) for depth in (0, 4, 4)]
    assert made == expected
    groups = mlp_autoencoder(weight_decay=0.5).configure_optimizers().param_groups
    decays = {parameter: group["weight_decay"] for group in groups for parameter in group["params"]}
    module = mlp_autoencoder(weight_decay=0.5)
    assert sorted(decays.values()) == [0.0] * 6 + [0.5] * 6
    assert all((parameter.ndim > 1) == (decay == 0.5) for parameter, decay in decays.items())
    assert len(module.configure_optimizers().param_groups) == 2
    assert len(linear_autoencoder(weight_decay=0.5).configure_optimizers().param_groups) == 1, "it has no biases"
    assert len(mlp_autoencoder().configure_optimizers().param_groups) == 1


def test_a_sweep_agent_chooses_the_id_of_its_run(tmp_path, monkeypatch):
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    own = loggers._wandb_id(tmp_path)
    assert loggers._wandb_id(tmp_path) == own, "a resumed run is the same"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    assert loggers._wandb_id(tmp_path) == "chosen"


@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_what_is_measured_reaches_the_logger(tmp_path, logger):
    def measured(module, directory, seed):
        save_image(torch.rand(3, 8, 8), directory / "samples_gaussian.png")
        return {"test/error": 0.125}

    assert len(sweep(tmp_path, logger=logger, evaluate=measured, methods=["plain"]).run()) == 1
    if logger == "csv":
        (path,) = tmp_path.glob("runs/*/csv/version_0/metrics.csv")
        assert "test/error" in path.read_text()
        assert "0.125" in path.read_text()
    else:
        (directory,) = tmp_path.glob("runs/*/tensorboard")
        events = EventAccumulator(str(directory)).Reload()
        assert events.Scalars("test/error")[0].value == 0.125
        assert events.Images("samples_gaussian")

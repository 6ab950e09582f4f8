"""When EffectiveRankMonitor looks, and at what."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import reference
import tiny
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging
from torch import nn

from lightning_rank import EffectiveRankMonitor, LinearBottleneck
from lightning_rank.callbacks._tap import Batch


def fit(monitor, *callbacks, model=None, **options):
    model = model or tiny.tiny()
    trainer = tiny.trainer(callbacks=[monitor, *callbacks], **options)
    trainer.fit(model, tiny.loader(), tiny.loader(53, 10, seed=2))
    return trainer, model


def test_training_batches_on_request_although_there_is_validation_data(caplog):
    monitor = EffectiveRankMonitor(stage="train")
    with caplog.at_level("INFO", "lightning.pytorch"):
        fit(monitor, max_epochs=2, num_sanity_val_steps=2)
    assert [row["rank/train/samples"] for row in monitor.history] == [32, 32]
    assert not any("there is no validation data" in record.message for record in caplog.records)


def test_the_test_split():
    monitor = EffectiveRankMonitor()
    trainer, model = fit(monitor, max_epochs=1)
    (metrics,) = trainer.test(model, tiny.loader(40, 7, seed=3), verbose=False)
    with torch.no_grad():
        latents = model.encoder(tiny.rows(40, seed=3)).double().numpy()
    assert metrics["rank/test/samples"] == 40
    assert metrics["rank/test/effective"] == pytest.approx(
        reference.effective_rank(reference.deviations(latents)), rel=1e-6
    )
    assert len(monitor.history) == 1


@pytest.mark.parametrize("stage", ["validate", "train"])
def test_every_n_epochs(stage):
    monitor = EffectiveRankMonitor(stage=stage, every_n_epochs=3)
    fit(monitor, max_epochs=7)
    assert [row["epoch"] for row in monitor.history] == [2, 5]


def test_composed_matrix():
    class First(Callback):
        def on_train_start(self, trainer, pl_module):
            torch.testing.assert_close(
                torch.linalg.svdvals(pl_module.encoder.linear_bottleneck.weight), torch.ones(tiny.DIM)
            )

    monitor = EffectiveRankMonitor(["encoder", "linear_bottleneck"])
    _, model = fit(monitor, First())
    values = torch.linalg.svdvals(model.encoder.linear_bottleneck.weight.double().detach())
    torch.testing.assert_close(monitor.weight_singular_values, {"linear_bottleneck": values})
    logged = monitor.history[-1]["rank/linear_bottleneck/weight_effective"]
    assert logged == pytest.approx(reference.effective_rank(values.numpy()))
    assert 1 < logged < tiny.DIM


def test_a_composed_matrix_that_is_not_finite_does_not_end_the_training():
    class Break(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pl_module.encoder.linear_bottleneck.layers[0].weight.data.fill_(torch.nan)

    monitor = EffectiveRankMonitor()
    fit(monitor, Break(), max_epochs=2)
    assert [row["rank/dropped_rows"] for row in monitor.history] == [53, 53]
    assert all(row["rank/weight_effective"] != row["rank/weight_effective"] for row in monitor.history)


class Several(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.mean, self.scale, self.wrap = nn.Linear(tiny.FEATURES, tiny.DIM), nn.Linear(tiny.FEATURES, 3), wrap

    def forward(self, x):
        return self.wrap(self.mean(x), self.scale(x))


class Variational(tiny.TinyAutoencoder):
    def __init__(self, wrap, key):
        super().__init__()
        self.encoder, self.key = Several(wrap), key

    def forward(self, x):
        return self.decoder(self.encoder(x)[self.key])


WRAPS = {
    "tuple": (lambda mean, scale: (mean, scale), 0),
    "list, from the end": (lambda mean, scale: [scale, mean], 1),
    "dict": (lambda mean, scale: {"scale": scale, "mean": mean}, "mean"),
    "tuple with one tensor": (lambda mean, scale: (mean, "text", {"more": scale.shape}), 0),
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_one_of_several_outputs(wrap):
    make, key = WRAPS[wrap]
    model = Variational(make, key)
    monitor = EffectiveRankMonitor("encoder", output=None if wrap == "tuple with one tensor" else key)
    fit(monitor, model=model, max_epochs=1)
    with torch.no_grad():
        latents = model.encoder.mean(tiny.rows(53, seed=2)).double().numpy()
    expected = torch.tensor(reference.deviations(latents))
    torch.testing.assert_close(monitor.singular_values["encoder"], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("wrap", "output", "error", "message"),
    [
        ("tuple", None, ValueError, r"a tuple with tensors at 0, 1, and it is not said which; pass output=0"),
        (
            "dict",
            None,
            ValueError,
            r"a dict with tensors at 'scale', 'mean', and it is not said which; pass output='sc",
        ),
        (
            "dict",
            "code",
            ValueError,
            r"expected output='code' to lead to a tensor, but a dict has tensors at 'scale', 'mean'",
        ),
    ],
)
def test_ambiguous_outputs_are_refused_in_the_sanity_check_already(wrap, output, error, message):
    model = Variational(*WRAPS[wrap])
    with pytest.raises(error, match=message):
        fit(EffectiveRankMonitor("encoder", output=output), model=model, num_sanity_val_steps=1)


def test_an_output_without_tensors_is_refused():
    class Text(nn.Module):
        def forward(self, x):
            return "text"

    class Model(tiny.TinyAutoencoder):
        def __init__(self):
            super().__init__()
            self.text = Text()

        def forward(self, x):
            self.text(x)
            return super().forward(x)

    with pytest.raises(TypeError, match="layer='text': expected a tensor, or something with a tensor in it, got a str"):
        fit(EffectiveRankMonitor("text"), model=Model())


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="stage: expected one of 'validate', 'train', got 'test'"):
        EffectiveRankMonitor(stage="test")
    with pytest.raises(ValueError, match="every_n_epochs: expected 1 or more, got 0"):
        EffectiveRankMonitor(every_n_epochs=0)


def test_a_resumed_run_continues_curve_and_spectra_without_a_gap_or_a_double_point(tmp_path):
    def run(epochs, **options):
        monitor = EffectiveRankMonitor()
        checkpoint = ModelCheckpoint(tmp_path, "last", enable_version_counter=False)
        trainer = tiny.trainer(callbacks=[monitor, checkpoint], max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(tiny.tiny(), tiny.loader(), tiny.loader(53, 10, seed=2), **options)
        return monitor

    first = run(2)
    resumed = run(5, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert [row["epoch"] for row in resumed.history] == [0, 1, 2, 3, 4]
    assert resumed.history[:2] == first.history
    for rows in resumed._curve.history.spectra.values():
        assert [row.epoch for row in rows] == [0, 1, 2, 3, 4]


class InTheMiddle(Callback):
    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        kept, pl_module._trainer = pl_module._trainer, None
        twin = pickle.loads(pickle.dumps(pl_module))
        pl_module._trainer = kept
        twin(tiny.rows(100))


def test_pickles_of_the_module_carry_hooks_that_do_nothing():
    monitor = EffectiveRankMonitor()
    fit(monitor, InTheMiddle())
    assert [row["rank/samples"] for row in monitor.history] == [53, 53]


def test_stochastic_weight_averaging_copies_the_module():
    monitor = EffectiveRankMonitor()
    fit(monitor, StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1), max_epochs=4)
    assert [row["rank/samples"] for row in monitor.history] == [53] * 4


def test_taking_a_batch_in_never_waits_for_the_device(monkeypatch):
    def refuse(*args):
        raise AssertionError("the host waits here")

    class Guard(Callback):
        names = ("item", "tolist", "__bool__", "__int__", "__float__", "cpu", "numpy", "nonzero")

    model, monitor = tiny.tiny(), EffectiveRankMonitor()
    monitor._set_hooks(model)
    model._current_fx_name = "training_step"
    for name in Guard.names:
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for _ in range(3):
        monitor._take(Batch("train"))
        with torch.enable_grad():  # where no product is kept and compared
            model.encoder(torch.ones(600, tiny.FEATURES))
        monitor._pause()
    monkeypatch.undo()
    assert monitor._taps[0].spectra["train", None].samples == 1800


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's sync debug mode wants a GPU")
def test_taking_a_batch_in_never_waits_for_a_gpu():
    model, monitor = LinearBottleneck(64).cuda(), EffectiveRankMonitor("layers.3")
    monitor._set_hooks(model)
    x = torch.randn(700, 64, device="cuda")
    model(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            monitor._take(Batch("train"))
            monitor._taps[0]._returned(model, (), x)
            monitor._pause()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert monitor._taps[0].spectra["train", None].samples == 3500


class Ends(Callback):
    def __init__(self, directory, checkpoint):
        self.directory, self.checkpoint = directory, checkpoint

    def on_fit_end(self, trainer, pl_module):
        score = self.checkpoint.best_model_score.item()
        torch.save((trainer.current_epoch, score), self.directory / f"end{trainer.global_rank}")


def test_early_stopping_and_checkpoints_watch_the_rank_in_two_processes(tmp_path):
    monitor = EffectiveRankMonitor()
    stopping = EarlyStopping("rank/effective", mode="max", patience=2, min_delta=100.0)
    checkpoint = ModelCheckpoint(tmp_path, monitor="rank/effective", mode="max")
    trainer = tiny.trainer(
        callbacks=[monitor, stopping, checkpoint, Ends(tmp_path, checkpoint)],
        max_epochs=9,
        devices=2,
        strategy="ddp_fork",
        enable_checkpointing=True,
    )
    trainer.fit(tiny.tiny(), tiny.loader(), tiny.loader(31, 8, seed=2))
    ends = [torch.load(tmp_path / f"end{rank}") for rank in (0, 1)]
    assert ends[0] == ends[1]
    assert ends[0][0] == 3, "one epoch to start from, and two without improvement"
    assert 1 < ends[0][1] <= tiny.DIM


@pytest.mark.slow
def test_the_example_configuration_runs_from_the_command_line(tmp_path):
    examples = Path(__file__).parents[2] / "examples"
    arguments = ["fit", "--config", str(examples / "lightning_cli.yaml"), "--trainer.max_epochs", "2"]
    options = ["--trainer.default_root_dir", str(tmp_path), "--trainer.logger.init_args.save_dir", str(tmp_path)]
    subprocess.run(
        [sys.executable, "-W", "ignore", str(examples / "lightning_cli.py"), *arguments, *options],
        check=True,
        timeout=200,
    )
    (metrics,) = tmp_path.rglob("metrics.csv")
    header = metrics.read_text().splitlines()[0].split(",")
    assert {"rank/effective", "rank/weight_effective", "lr-Adam/base", "lr-Adam/encoder.linear_bottleneck"} <= set(
        header
    )
    assert list(tmp_path.rglob("rank_spectra/*.csv"))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo's own
@pytest.mark.parametrize("compiled", ["nothing", "the encoder", "the encoder, and run"])
def test_compiled_code_is_kept_but_where_it_would_miss_the_hook(compiled, monkeypatch):
    torch.compiler.reset()
    resets = []
    reset = torch.compiler.reset
    monkeypatch.setattr(torch.compiler, "reset", lambda: (resets.append(1), reset()))
    model, monitor = tiny.TinyAutoencoder(), EffectiveRankMonitor("encoder")
    if compiled != "nothing":
        model.encoder = torch.compile(model.encoder, backend="eager")
    if compiled == "the encoder, and run":
        model.encoder(tiny.rows())
    trainer, _ = fit(monitor, model=model, max_epochs=2)
    for _ in range(2):
        (metrics,) = trainer.validate(model, tiny.loader(40, 10), verbose=False)
        assert metrics["rank/samples"] == 40
    assert [row["rank/samples"] for row in monitor.history] == [53, 53]
    assert len(resets) == (compiled == "the encoder, and run")

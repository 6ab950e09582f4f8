"""EffectiveRankMonitor: exact over the whole split, the same everywhere, seen by those who watch it."""

import math
import re
import warnings
from pathlib import Path
from weakref import WeakSet

import numpy as np
import pytest
import reference
import tiny
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_rank import DepthScaledLR, EffectiveRankMonitor, attach_linear_bottleneck

KEYS = ["effective", "numerical", "participation", "stable", "gap", "directions_95", "alpha", "rankme", "condition"]
KEYS += ["samples", "dropped_rows"]


def latents_of(model, x):
    with torch.no_grad():
        return model.encoder(x).double().numpy()  # behind the attached bottleneck


def fit(model=None, monitor=None, val=None, callbacks=(), **options):
    model = model or tiny.tiny()
    monitor = monitor or EffectiveRankMonitor()
    trainer = tiny.trainer(callbacks=[*callbacks, monitor], **options)
    trainer.fit(model, tiny.loader(), tiny.loader(53, 10, seed=2) if val is None else val)
    return trainer, model, monitor


def test_docstring_and_page_list_every_key():
    page = (Path(__file__).parents[2] / "docs/monitor.md").read_text()
    listed = re.findall(r"^ +rank/(\w+) ", EffectiveRankMonitor.__doc__, re.M)
    assert listed == [*KEYS, "weight_effective"]
    assert re.findall(r"^\| `rank/(\w+)`", page, re.M)[: len(listed)] == listed


def test_the_logged_ranks_are_those_of_all_validation_latents():
    trainer, model, monitor = fit()
    deviations = reference.deviations(latents_of(model, tiny.rows(53, seed=2)))
    variances = deviations**2
    logged = {key: value.item() for key, value in trainer.callback_metrics.items()}
    assert list(logged) == [f"rank/{key}" for key in [*KEYS, "weight_effective"]]
    assert logged["rank/effective"] == pytest.approx(reference.effective_rank(deviations), rel=1e-6)
    assert logged["rank/numerical"] == (variances > 1e-3 * variances[0]).sum()
    assert logged["rank/participation"] == pytest.approx(variances.sum() ** 2 / (variances**2).sum(), rel=1e-6)
    assert logged["rank/stable"] == pytest.approx(variances.sum() / variances[0], rel=1e-6)
    assert logged["rank/gap"] == 1 + (deviations[:-1] / deviations[1:]).argmax()
    assert logged["rank/directions_95"] == 1 + (variances.cumsum() < 0.95 * variances.sum()).sum()
    k = np.arange(1, tiny.DIM + 1)
    slope, _ = np.polyfit(np.log(k), np.log(variances), 1, w=k**-0.5)
    assert logged["rank/alpha"] == pytest.approx(-slope, rel=1e-5)
    values = np.linalg.svd(latents_of(model, tiny.rows(53, seed=2)), compute_uv=False)
    p = values / values.sum() + 1e-7
    assert logged["rank/rankme"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert logged["rank/condition"] == pytest.approx(deviations[0] / deviations[-1], rel=1e-6)
    assert (logged["rank/samples"], logged["rank/dropped_rows"]) == (53, 0)
    torch.testing.assert_close(
        monitor.singular_values["linear_bottleneck"], torch.tensor(deviations), rtol=1e-6, atol=0
    )


def test_each_validation_epoch_is_a_row_and_the_sanity_check_is_not():
    _, _, monitor = fit(max_epochs=3, num_sanity_val_steps=2)
    assert [(row["epoch"], row["step"]) for row in monitor.history] == [(0, 3), (1, 7), (2, 11)]
    assert all(row["rank/samples"] == 53 for row in monitor.history)
    _, _, monitor = fit(max_epochs=1, val_check_interval=0.5)
    assert [(row["epoch"], row["step"]) for row in monitor.history] == [(0, 1), (0, 3)]


def test_the_threshold_is_on_variances():
    _, _, loose = fit(monitor=EffectiveRankMonitor(variance_rtol=0.5))
    variances = loose.singular_values["linear_bottleneck"] ** 2
    assert loose.history[-1]["rank/numerical"] == (variances > 0.5 * variances[0]).sum() < tiny.DIM


def test_several_layers_have_their_own_keys():
    trainer, model, monitor = fit(monitor=EffectiveRankMonitor(["decoder", "linear_bottleneck"]))
    keys = {f"rank/{layer}/{key}" for layer in monitor.layers for key in KEYS}
    assert set(trainer.callback_metrics) == keys | {"rank/linear_bottleneck/weight_effective"}
    x = tiny.rows(53, seed=2)
    for layer, output in {
        "decoder": model(x).detach().double().numpy(),
        "linear_bottleneck": latents_of(model, x),
    }.items():
        expected = reference.effective_rank(reference.deviations(output))
        assert trainer.callback_metrics[f"rank/{layer}/effective"].item() == pytest.approx(expected, rel=1e-5)


def test_each_of_several_validation_loaders_has_its_own_keys():
    rows = tiny.rows(53, seed=2)
    parts = (rows[:20], rows[20:])
    trainer, model, monitor = fit(val=[DataLoader(TensorDataset(part), 10) for part in parts], max_epochs=1)
    for loader, part in enumerate(parts):
        deviations = reference.deviations(latents_of(model, part))
        logged = trainer.callback_metrics[f"rank/effective/dataloader_idx_{loader}"].item()
        assert logged == pytest.approx(reference.effective_rank(deviations), rel=1e-6)
        assert monitor.history[0][f"rank/samples/dataloader_idx_{loader}"] == len(part)
        found = monitor.singular_values[f"linear_bottleneck/dataloader_idx_{loader}"]
        torch.testing.assert_close(found, torch.tensor(deviations), rtol=1e-6, atol=1e-12)
    assert "rank/effective" not in trainer.callback_metrics
    assert "rank/weight_effective" in trainer.callback_metrics, "the matrix is of no loader"


class WithModules(tiny.TinyAutoencoder):
    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


@pytest.mark.parametrize("kind", ["tokens", "image"])
def test_every_position_of_the_latents_is_a_row(kind):
    if kind == "tokens":
        model, x, positions = WithModules(nn.Linear(8, 6), nn.Linear(6, 8)), torch.randn(20, 5, 8), 5
    else:
        model, x, positions = (
            WithModules(nn.Conv2d(3, 6, 2, 2), nn.ConvTranspose2d(6, 3, 2, 2)),
            torch.randn(20, 3, 4, 6),
            6,
        )
    model.training_step = lambda batch, batch_idx: (model(batch[0]) - batch[0]).square().mean()
    attach_linear_bottleneck(model, dim=6, depth=2)
    monitor = EffectiveRankMonitor(["linear_bottleneck", "encoder"])
    loader = DataLoader(TensorDataset(x), 8)
    tiny.trainer(callbacks=[monitor], max_epochs=1).fit(model, loader, loader)
    assert monitor.history[0]["rank/linear_bottleneck/samples"] == 20 * positions
    latents = torch.tensor(latents_of(model, x))
    rows = latents.flatten(0, 1) if kind == "tokens" else latents.movedim(1, -1).flatten(0, 2)
    expected = torch.tensor(reference.deviations(rows.numpy()))
    for layer in monitor.layers:
        torch.testing.assert_close(monitor.singular_values[layer], expected, rtol=1e-5, atol=1e-9)


def test_without_validation_data_training_batches_are_monitored_and_that_is_said_once(caplog):
    monitor = EffectiveRankMonitor()
    with caplog.at_level("INFO", "lightning.pytorch"):
        trainer = tiny.trainer(callbacks=[monitor], max_epochs=3)
        trainer.fit(tiny.tiny(), tiny.loader())
    assert sum("there is no validation data" in record.message for record in caplog.records) == 1
    assert [row["rank/train/samples"] for row in monitor.history] == [32, 32, 32]
    assert trainer.callback_metrics["rank/train/samples"] == 32
    trainer, _, monitor = fit(limit_val_batches=0, max_epochs=1)
    assert monitor.history[0]["rank/train/samples"] == 32


def test_gradient_checkpointing_does_not_count_rows_twice():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(tiny.FEATURES, tiny.DIM), nn.ReLU(), nn.Linear(tiny.DIM, tiny.DIM))

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)

    model = WithModules(Checkpointed(), nn.Linear(tiny.DIM, tiny.FEATURES))
    monitor = EffectiveRankMonitor("encoder.inner.0")  # the last layer's recomputation stops before its hook
    tiny.trainer(callbacks=[monitor], max_epochs=1).fit(model, tiny.loader())
    assert monitor.history[0]["rank/train/samples"] == 32


def test_validate_alone_and_then_fit():
    model, monitor = tiny.tiny(), EffectiveRankMonitor()
    trainer = tiny.trainer(callbacks=[monitor], max_epochs=1)
    (metrics,) = trainer.validate(model, tiny.loader(53, 10, seed=2), verbose=False)
    expected = reference.effective_rank(reference.deviations(latents_of(model, tiny.rows(53, seed=2))))
    assert metrics["rank/effective"] == pytest.approx(expected, rel=1e-6)
    assert monitor.history == []
    monitor.singular_values["linear_bottleneck"].requires_grad_()  # not an inference tensor
    trainer.fit(model, tiny.loader(), tiny.loader(53, 10, seed=2))
    assert monitor.history[0]["rank/samples"] == 53


class Spoil(Callback):
    """Puts NaN into some validation inputs."""

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 1:
            batch[0][:3] = math.nan


def test_bad_rows_are_dropped_and_counted_and_training_goes_on():
    trainer, _, monitor = fit(callbacks=[Spoil()])
    assert (monitor.history[-1]["rank/samples"], monitor.history[-1]["rank/dropped_rows"]) == (50, 3)
    assert math.isfinite(monitor.history[-1]["rank/effective"])
    assert trainer.current_epoch == 2


def test_checkpoints_and_early_stopping_can_watch_a_rank(tmp_path):
    checkpoint = ModelCheckpoint(
        tmp_path, "{rank/numerical:.0f}", monitor="rank/effective", auto_insert_metric_name=False
    )
    stopping = EarlyStopping("rank/effective", stopping_threshold=0.5, mode="max")
    trainer, _, monitor = fit(callbacks=[checkpoint, stopping], enable_checkpointing=True)
    assert trainer.current_epoch == 1
    assert checkpoint.best_model_score.item() == pytest.approx(monitor.history[0]["rank/effective"], rel=1e-6)


class InForward(Callback):
    """Runs the model between validation batches, as callbacks that make pictures do."""

    def on_validation_batch_end(self, trainer, pl_module, *args):
        pl_module(tiny.rows(100))

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module(tiny.rows(100))


@pytest.mark.parametrize("first", [True, False])
def test_what_runs_after_the_epochs_batches_does_not_count(first):
    class AtEpochEnd(InForward):
        on_validation_batch_end = Callback.on_validation_batch_end

    monitor = EffectiveRankMonitor()
    trainer = tiny.trainer(callbacks=[AtEpochEnd(), monitor] if first else [monitor, InForward()], max_epochs=1)
    model = tiny.tiny()
    trainer.fit(model, tiny.loader(), tiny.loader(53, 10))
    assert monitor.history[0]["rank/samples"] == 53
    expected = torch.tensor(reference.deviations(latents_of(model, tiny.rows(53))))
    torch.testing.assert_close(monitor.singular_values["linear_bottleneck"], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("outcome", ["success", "exception"])
def test_no_hook_is_left_behind(outcome):
    class Failing(Callback):
        def on_train_epoch_end(self, *args):
            raise RuntimeError("on purpose")

    model = tiny.tiny()
    if outcome == "success":
        fit(model)
    else:
        with pytest.raises(RuntimeError, match="on purpose"):
            fit(model, callbacks=[Failing()])
    assert not model.encoder.linear_bottleneck._forward_hooks


@pytest.mark.parametrize("when", ["before", "after the hooks are set"])
def test_compiled_layers_are_seen(when):
    class Compile(Callback):
        def setup(self, trainer, pl_module, stage):
            pl_module.encoder = torch.compile(pl_module.encoder, backend="eager")

    model = tiny.tiny()
    if when == "before":
        Compile().setup(None, model, "fit")
    monitor = EffectiveRankMonitor(["encoder", "linear_bottleneck"] if when != "before" else "encoder")
    callbacks = [monitor] if when == "before" else [monitor, Compile()]
    tiny.trainer(callbacks=callbacks, max_epochs=2).fit(model, tiny.loader(), tiny.loader(53, 10))
    assert all(value == 53 for row in monitor.history for key, value in row.items() if key.endswith("samples"))
    assert len(monitor.history) == 2


def test_a_layer_that_is_not_called_is_said_once():
    model = tiny.tiny()
    model.unused = nn.Linear(2, 2)
    with pytest.warns(UserWarning, match="layer 'unused' was not called") as warned:
        trainer, _, monitor = fit(model, EffectiveRankMonitor("unused"))
    assert sum("was not called" in str(w.message) for w in warned) == 1
    assert not trainer.callback_metrics
    assert monitor.history == []


def test_averaged_weights_are_monitored_when_they_are_what_is_validated():
    class Averaged(Callback):
        def on_validation_batch_end(self, trainer, pl_module, *args):
            self.latents = latents_of(pl_module, tiny.rows(53, seed=2))

    seen = Averaged()
    monitor = EffectiveRankMonitor()
    trainer = tiny.trainer(callbacks=[monitor, WeightAveraging(), seen], max_epochs=3)
    trainer.fit(tiny.tiny(), tiny.loader(), tiny.loader(53, 10, seed=2))
    expected = reference.effective_rank(reference.deviations(seen.latents))
    assert monitor.history[-1]["rank/effective"] == pytest.approx(expected, rel=1e-6)
    assert monitor.history[-1]["rank/samples"] == 53


def test_two_monitors_keep_keys_and_states_apart_by_their_own_arguments(tmp_path):
    plain, named, listed = (
        EffectiveRankMonitor(),
        EffectiveRankMonitor("decoder", name="out"),
        EffectiveRankMonitor(["decoder"]),
    )
    trainer, *_ = fit(monitor=plain, callbacks=[named, listed], max_epochs=1)
    trainer.save_checkpoint(tmp_path / "all.ckpt", weights_only=False)
    states = torch.load(tmp_path / "all.ckpt", weights_only=True)["callbacks"]
    for monitor, prefix in ((plain, "rank/"), (named, "rank/out/"), (listed, "rank/decoder/")):
        assert monitor.state_key in states
        (layer,) = monitor.layers
        expected = reference.effective_rank(monitor.singular_values[layer].numpy())
        assert trainer.callback_metrics[f"{prefix}effective"].item() == pytest.approx(expected, rel=1e-6)
        assert monitor.history[0][f"{prefix}effective"] == pytest.approx(expected)
    assert len({plain.state_key, named.state_key, listed.state_key}) == 3


def test_keys_that_two_monitors_would_share_are_refused_with_the_way_out():
    with pytest.raises(
        ValueError, match=r"got rank/\.\.\. in two; pass name='\.\.\.' to one of them, or layer=\[\.\.\.\]"
    ):
        fit(callbacks=[EffectiveRankMonitor("encoder")])


def test_validating_a_checkpoint_keeps_the_curve_and_training_from_it_goes_on_from_its_own(tmp_path):
    trainer, model, monitor = fit(max_epochs=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt", weights_only=False)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, tiny.loader(), tiny.loader(53, 10, seed=2))
    curve = monitor.history
    assert len(curve) == 4
    trainer.validate(model, tiny.loader(20, 10), ckpt_path=tmp_path / "two.ckpt", verbose=False, weights_only=False)
    assert monitor.history == curve
    _, _, other = fit(max_epochs=1)
    trainer = tiny.trainer(callbacks=[other], max_epochs=3)
    trainer.fit(model, tiny.loader(), tiny.loader(53, 10, seed=2), ckpt_path=tmp_path / "two.ckpt", weights_only=False)
    assert [row["epoch"] for row in other.history] == [0, 1, 2]
    assert other.history[:2] == curve[:2]


def test_code_compiled_for_an_equal_module_without_the_hooks_is_not_used():
    twin = tiny.TinyAutoencoder()
    torch.compile(twin.encoder, backend="eager")(tiny.rows())
    model = tiny.TinyAutoencoder()
    model.encoder = torch.compile(model.encoder, backend="eager")
    _, _, monitor = fit(model, EffectiveRankMonitor("encoder"), max_epochs=1)
    assert monitor.history[0]["rank/samples"] == 53
    expected = torch.tensor(reference.deviations(latents_of(model, tiny.rows(53, seed=2))))
    torch.testing.assert_close(monitor.singular_values["encoder"], expected, rtol=1e-6, atol=0)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(tiny.DIM, tiny.DIM)

    def forward(self, z):
        return z + self.linear(z).tanh()


def test_equal_blocks_that_are_compiled_one_by_one_are_told_apart(monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr("lightning_rank.nn._compiled._owners", WeakSet())
    monkeypatch.setattr("lightning_rank.nn._compiled._skipped", [])
    model, names = tiny.TinyAutoencoder(), ["encoder.2.linear", "encoder.3.linear"]
    model.encoder = nn.Sequential(model.encoder, *(Block() for _ in range(4)))
    for block in model.encoder[1:]:
        block.compile(backend="eager")
    monitor, other = EffectiveRankMonitor(names), EffectiveRankMonitor("encoder.4.linear")
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=True):  # monkeypatch would take it away afterwards
        tiny.trainer(callbacks=[monitor, other]).validate(model, tiny.loader(53, 10, seed=2), verbose=False)
        assert torch._dynamo.config.skip_nnmodule_hook_guards  # left as it was
    seen = {}
    for name in (*names, *other.layers):
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output.detach().numpy()})
        )
    with torch.compiler.set_stance("force_eager"):
        model(tiny.rows(53, seed=2))
    spectra = monitor.singular_values | other.singular_values
    for name, latents in seen.items():
        torch.testing.assert_close(spectra[name], torch.tensor(reference.deviations(latents)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("offset", [0.0, 3.0, 10.0])
def test_the_gap_is_found_in_float32_latents_whose_rounding_is_near_the_resolution(offset):
    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("basis", torch.linalg.qr(torch.randn(32, 3)).Q)
            self.register_buffer("bias", offset * torch.randn(32))

        def forward(self, x):
            return x[:, :3] @ self.basis.T + self.bias

    model = WithModules(Offset(), nn.Linear(32, tiny.FEATURES))
    _, _, monitor = fit(model, EffectiveRankMonitor("encoder"), max_epochs=1)
    assert monitor.history[0]["rank/gap"] == 3


def test_the_spectrum_is_a_picture_in_tensorboard(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    fit(monitor=EffectiveRankMonitor(log_spectrum_every_n_epochs=2), logger=logger, max_epochs=4)
    logger.experiment.flush()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert [event.step for event in events.Images("rank/spectrum")] == [
        3,
        11,
        15,
    ]  # epochs 0 and 2, and the last, where the scalars are
    assert [event.step for event in events.Scalars("rank/effective")] == [3, 7, 11, 15]


def test_a_logger_without_pictures_gets_the_numbers(tmp_path):
    fit(logger=CSVLogger(tmp_path), max_epochs=1)
    header = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()[0]
    assert {f"rank/{key}" for key in KEYS} <= set(header.split(","))


def test_autocast_latents_are_read_as_they_are():
    model, monitor, seen = tiny.tiny(), EffectiveRankMonitor(), []
    model.encoder.linear_bottleneck.register_forward_hook(lambda module, args, latents: seen.append(latents))
    trainer = tiny.trainer(precision="bf16-mixed", callbacks=[monitor])
    trainer.validate(model, tiny.loader(53, 10, seed=2), verbose=False)
    latents = torch.cat(seen)
    assert latents.dtype == torch.bfloat16
    expected = torch.tensor(reference.deviations(latents.double().numpy()))
    # Multiplied in bfloat16, as autocast does, they would be off by 1e-2, in float32 by 1e-7.
    torch.testing.assert_close(monitor.singular_values["linear_bottleneck"], expected, rtol=1e-10, atol=0)
    assert trainer.callback_metrics["rank/samples"] == 53


def test_bad_layers_are_refused():
    with pytest.raises(
        ValueError,
        match=r"layer: .* a submodule of TinyAutoencoder, got 'linear_botleneck'; nearest: 'encoder.linear_b",
    ):
        fit(monitor=EffectiveRankMonitor("linear_botleneck"))
    with pytest.raises(ValueError, match=r"layer='encoder': expected a batch \(B, dim\).* got shape \(10,\)"):
        fit(WithModules(nn.Sequential(nn.Linear(10, 1), nn.Flatten(0)), nn.Identity()), EffectiveRankMonitor("encoder"))
    with pytest.raises(TypeError, match="layer: expected the dotted name of a submodule, got int"):
        EffectiveRankMonitor([1])
    for bad in ([], ["encoder", "encoder"]):
        with pytest.raises(ValueError, match="layer: expected one or more different names, got"):
            EffectiveRankMonitor(bad)
    with pytest.raises(ValueError, match="variance_rtol: expected a number in"):
        EffectiveRankMonitor(variance_rtol=1)
    with pytest.raises(ValueError, match="log_spectrum_every_n_epochs: expected 1 or more, 'auto' or None, got 0"):
        EffectiveRankMonitor(log_spectrum_every_n_epochs=0)


class Gather(Callback):
    """Writes what each process saw."""

    def __init__(self, directory, monitor):
        self.directory, self.monitor = directory, monitor

    def on_fit_end(self, trainer, pl_module):
        values = {key: value.item() for key, value in trainer.callback_metrics.items()}
        torch.save(
            (values, self.monitor.singular_values, self.monitor.history), self.directory / str(trainer.global_rank)
        )


def test_repeated_samples_do_not_count_in_shuffled_validation_and_in_training(tmp_path):
    for name, loaders, prefix in (
        ("val", (tiny.loader(), DataLoader(TensorDataset(tiny.rows(31)), 8, shuffle=True)), "rank/"),
        ("train", (tiny.loader(31, 8),), "rank/train/"),
    ):
        monitor = EffectiveRankMonitor()
        (tmp_path / name).mkdir()
        callbacks = [monitor, Gather(tmp_path / name, monitor)]
        trainer = tiny.trainer(callbacks=callbacks, max_epochs=1, devices=2, strategy="ddp_fork")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*shuffling enabled.*")
            trainer.fit(tiny.tiny(), *loaders)
        _, _, history = torch.load(tmp_path / name / "0")
        assert history[0][f"{prefix}samples"] == 31, name


@pytest.mark.parametrize(("rows", "batch_size"), [(31, 8), (33, 4), (1, 4)])
def test_two_processes_agree_with_one_and_repeated_samples_do_not_count(rows, batch_size, tmp_path):
    def run(monitor, **options):
        torch.manual_seed(0)
        model = tiny.tiny()
        model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.0)
        trainer = tiny.trainer(callbacks=[DepthScaledLR(), monitor, Gather(tmp_path, monitor)], max_epochs=1, **options)
        trainer.fit(model, tiny.loader(), tiny.loader(rows, batch_size, seed=2))

    alone = EffectiveRankMonitor()
    run(alone)
    run(EffectiveRankMonitor(), devices=2, strategy="ddp_fork")
    for process in ("0", "1"):
        values, deviations, history = torch.load(tmp_path / process)
        assert values["rank/samples"] == rows
        assert values["rank/effective"] == pytest.approx(alone.history[0]["rank/effective"], rel=1e-6)
        # To float32's rounding: in batches of other rows the encoder itself rounds otherwise.
        assert history[0]["rank/effective"] == pytest.approx(alone.history[0]["rank/effective"], rel=1e-7)
        torch.testing.assert_close(deviations, alone.singular_values, rtol=1e-6, atol=1e-12)

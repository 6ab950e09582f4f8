"""LatentTraversal: the right picture, at the right time, in the right place, and nothing else changed."""

import os
from datetime import timedelta
from functools import partial

import pytest
import tiny
import torch
import wandb
import wandb_reader
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import pil_to_tensor

from lightning_rank import EffectiveRankMonitor, LatentTraversal, attach_linear_bottleneck
from lightning_rank.callbacks._due import Due
from lightning_rank.functional import row_moments
from lightning_rank.traversal import image_grid, interpolate_latents, traverse_principal_directions

SHAPE = (1, 2, 5)  # of tiny.FEATURES


def model(lr=1e-2):
    built = tiny.tiny()
    built.decoder.weight.data.mul_(0.3)  # most of what it returns is in [0, 1]
    built.decoder.bias.data.fill_(0.5)
    built.configure_optimizers = lambda: torch.optim.SGD(built.parameters(), lr)
    return built


def fit(callback=None, *callbacks, module=None, val=None, **options):
    callback = callback or LatentTraversal(image_shape=SHAPE, n_directions=3, steps=5)
    module = module or model()
    trainer = tiny.trainer(callbacks=[callback, *callbacks], **options)
    trainer.fit(module, tiny.loader(), tiny.loader(53, 10, seed=2) if val is None else val)
    return trainer, module, callback


def expected_picture(module, x, n_directions=3, steps=5, shape=SHAPE):
    """Of what the module makes of the whole split, computed in one piece."""
    with torch.no_grad():
        latents = module.encoder(x)  # behind the attached bottleneck
        grids = [traverse_principal_directions(row_moments(latents), n_directions, steps).to(latents)]
        if len(x) > 1:
            grids.append(interpolate_latents(latents[0], latents[1], steps)[None])
        return torch.cat([image_grid(module.decoder(grid).unflatten(-1, shape)) for grid in grids], 1)


def assert_close(picture, expected):
    """Up to a rounding to the next of 256 values."""
    torch.testing.assert_close(picture.int(), expected.int(), rtol=0, atol=1)


def files(directory):
    return sorted(path.name for path in directory.rglob("*.png"))


def read(path):
    return pil_to_tensor(Image.open(path))


def test_the_picture_is_that_of_the_whole_validation_split(tmp_path):
    trainer, module, callback = fit(default_root_dir=tmp_path, num_sanity_val_steps=2)
    expected = expected_picture(module, tiny.rows(53, seed=2))
    assert_close(callback.picture, expected)
    assert len(expected.unique()) > 50
    assert trainer.training is False


def test_a_linear_decoder_shows_the_mean_and_multiples_of_deviation_times_direction(tmp_path):
    _, module, callback = fit(default_root_dir=tmp_path, max_epochs=1)
    with torch.no_grad():
        latents = module.encoder(tiny.rows(53, seed=2)).double()
    centered = latents - latents.mean(0)
    _, sigma, directions = torch.linalg.svd(centered, full_matrices=False)
    axis = directions[1] * sigma[1] / 53**0.5
    axis = axis * axis[axis.abs().argmax()].sign()
    for column, multiple in enumerate((-2, -1, 0, 1, 2)):
        pixels = module.decoder((latents.mean(0) + multiple * axis).float()).detach().clamp(0, 1).reshape(2, 5)
        # Images of 2x5 are enlarged 32 times, with 3 pixels between them; in the middle of each:
        found = callback.picture[0, 3 + 67 + 16 : 2 * 67 : 32, 3 + 163 * column + 16 : 163 * (column + 1) : 32]
        assert_close(found, 255 * pixels)


def test_in_front_of_the_decoder_the_latents_are_those_that_the_decoder_is_given(tmp_path):
    torch.manual_seed(0)
    module = attach_linear_bottleneck(tiny.TinyAutoencoder(), before="decoder", dim=tiny.DIM, depth=2, gain=0.5)
    _, module, callback = fit(module=module, default_root_dir=tmp_path, max_epochs=1)
    assert_close(callback.picture, expected_picture(module, tiny.rows(53, seed=2)))


class Deep(tiny.TinyAutoencoder):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(tiny.DIM, tiny.DIM), nn.Linear(tiny.DIM, tiny.FEATURES))


def test_behind_the_entrance_of_the_decoder_it_is_refused_in_the_sanity_check_with_a_way_out(tmp_path):
    torch.manual_seed(0)
    for before in ("decoder", "decoder.0"):
        module = attach_linear_bottleneck(Deep(), before=before, dim=tiny.DIM, depth=2, gain=0.5)
        _, module, callback = fit(module=module, default_root_dir=tmp_path, max_epochs=1, num_sanity_val_steps=1)
        assert_close(callback.picture, expected_picture(module, tiny.rows(53, seed=2)))
    module = attach_linear_bottleneck(Deep(), after="decoder.0", dim=tiny.DIM, depth=2, gain=0.5)
    with pytest.raises(ValueError, match="decoder='decoder': expected it to hand on to layer='linear_bottleneck'"):
        fit(module=module, default_root_dir=tmp_path, max_steps=0, num_sanity_val_steps=1)
    callback = LatentTraversal(decoder="decoder.1", image_shape=SHAPE)
    tiny.trainer(callbacks=[callback], default_root_dir=tmp_path).validate(module, tiny.loader(), verbose=False)
    with torch.no_grad():
        latents = module.decoder[0](module.encoder(tiny.rows()))
        moments = row_moments(latents)
        grids = (
            traverse_principal_directions(moments, tiny.DIM, 9).to(latents),
            interpolate_latents(*latents[:2], 9)[None],
        )
        images = [image_grid(module.decoder[1](grid).unflatten(-1, SHAPE)) for grid in grids]
    assert_close(callback.picture, torch.cat(images, 1))


def test_samples_that_are_not_finite_are_no_ends_of_the_straight_line(tmp_path):
    module, x = model(), tiny.rows(30)
    x[0, 3], x[2] = torch.nan, torch.inf
    _, module, callback = fit(module=module, val=DataLoader(TensorDataset(x), 8), default_root_dir=tmp_path)
    assert_close(callback.picture, expected_picture(module, x[[1, *range(3, 30)]]))


def test_files_beside_the_checkpoints_every_n_epochs_and_at_the_end_and_not_of_the_sanity_check(tmp_path):
    callback = LatentTraversal(image_shape=SHAPE, every_n_epochs=2)
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints")
    options = {"logger": CSVLogger(tmp_path), "enable_checkpointing": True, "num_sanity_val_steps": 2}
    fit(callback, checkpoint, max_epochs=5, **options)
    directory = tmp_path / "checkpoints/latent_traversals"
    steps = {1: 7, 3: 15, 4: 19}
    assert files(tmp_path) == [f"linear_bottleneck-epoch={epoch}-step={step}.png" for epoch, step in steps.items()]
    assert read(directory / "linear_bottleneck-epoch=4-step=19.png").equal(callback.picture)
    assert not read(directory / "linear_bottleneck-epoch=1-step=7.png").equal(callback.picture)


def test_pictures_space_themselves_out_and_the_last_validation_has_one(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("lightning_rank.callbacks.latent_traversal.Due", partial(Due, clock=lambda: now[0]))

    class Slow(LatentTraversal):
        def to_images(self, decoded):
            now[0] += 1.0  # seconds, of two rows of a picture each
            return super().to_images(decoded)

        def on_validation_epoch_start(self, trainer, pl_module):
            super().on_validation_epoch_start(trainer, pl_module)
            now[0] += 10.0

    options = {"max_epochs": 4, "val_check_interval": 1, "num_sanity_val_steps": 0, "logger": CSVLogger(tmp_path)}
    callback = Slow(image_shape=SHAPE, n_directions=1, steps=2)
    fit(callback, **options)
    # The first is reckoned to take a second, so that twenty have to pass; each takes two, so that the next waits forty.
    steps = sorted(int(name.split("step=")[1][:-4]) for name in files(tmp_path))
    assert steps == [1, 5, 9, 13, 15]
    callback.every_n_epochs = None
    fit(callback, **options | {"logger": CSVLogger(tmp_path, "at_the_end")})
    assert [name.split("step=")[1] for name in files(tmp_path / "at_the_end")] == ["15.png"]


def test_the_last_picture_is_sent_once_whatever_ends_the_training(tmp_path):
    drawn = []

    class Counting(LatentTraversal):
        def _draw(self, trainer, pl_module):
            drawn.append(self._undrawn)
            super()._draw(trainer, pl_module)

    stopping = EarlyStopping("rank/effective", stopping_threshold=0.5, mode="max")
    fit(Counting(image_shape=SHAPE), EffectiveRankMonitor(), stopping, max_epochs=9, default_root_dir=tmp_path)
    assert drawn == [(0, 3)]
    fit(Counting(image_shape=SHAPE, every_n_epochs=1), max_epochs=2, default_root_dir=tmp_path, num_sanity_val_steps=2)
    assert drawn[1:] == [(0, 3), (1, 7)]


@pytest.mark.filterwarnings("ignore")  # what W&B's threads and processes warn of is W&B's affair
def test_an_offline_wandb_run_has_the_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True, mode="offline")
    callback = LatentTraversal(image_shape=SHAPE, every_n_epochs=2)
    fit(callback, logger=logger, max_epochs=3)
    logger.experiment.finish()
    wandb.teardown()  # waits until the file is written
    os.environ.pop("WANDB_MODE", None)  # Lightning sets it
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    rows = [row for row in wandb_reader.history(path) if "traversal/linear_bottleneck/filenames" in row]
    assert [row["trainer/global_step"] for row in rows] == [7, 11]
    (last,) = rows[-1]["traversal/linear_bottleneck/filenames"]
    assert read(path.parent / "files" / last).equal(callback.picture)
    assert not list(tmp_path.rglob("latent_traversals"))


def test_tensorboard_has_the_pictures_and_another_logger_beside_it_the_files(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path / "alone")
    callback = LatentTraversal(image_shape=SHAPE, every_n_epochs=2)
    fit(callback, logger=logger, max_epochs=3)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir, {"images": 0})
    events.Reload()
    images = events.Images("traversal/linear_bottleneck")
    assert [image.step for image in images] == [7, 11]
    (tmp_path / "last.png").write_bytes(images[-1].encoded_image_string)
    assert read(tmp_path / "last.png").equal(callback.picture.expand(3, -1, -1))
    assert files(tmp_path / "alone") == []
    fit(logger=[TensorBoardLogger(tmp_path / "both"), CSVLogger(tmp_path / "both")])
    assert files(tmp_path / "both") == ["linear_bottleneck-epoch=1-step=7.png"]


def test_a_fast_development_run_draws_and_writes_nothing(tmp_path):
    _, _, callback = fit(fast_dev_run=True, default_root_dir=tmp_path)
    assert callback.picture is not None
    assert list(tmp_path.iterdir()) == []


def test_validate_alone_and_then_fit(tmp_path):
    module, callback = model(), LatentTraversal(image_shape=SHAPE, n_directions=3, steps=5)
    trainer = tiny.trainer(callbacks=[callback], max_epochs=1, default_root_dir=tmp_path)
    trainer.validate(module, tiny.loader(53, 1, seed=2), verbose=False)
    assert_close(callback.picture, expected_picture(module, tiny.rows(53, seed=2)))
    assert files(tmp_path) == ["linear_bottleneck-epoch=0-step=0.png"]
    callback.picture.float().requires_grad_()  # not an inference tensor
    trainer.fit(module, tiny.loader(), tiny.loader(53, 10, seed=2))
    assert_close(callback.picture, expected_picture(module, tiny.rows(53, seed=2)))


class Noisy(nn.Module):
    """A decoder that draws random numbers, and remembers the mode in which it ran."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder, self.drop, self.modes = decoder, nn.Dropout(0.5), []

    def forward(self, z):
        self.modes.append(self.training)
        return self.drop(self.decoder(z)) + 0.1 * torch.rand(1)


def test_random_state_mode_and_weights_are_those_without_it(tmp_path):
    trained = []
    for callbacks in ([], [LatentTraversal(image_shape=SHAPE)]):
        torch.manual_seed(0)
        module = model()
        module.decoder = Noisy(module.decoder)
        trainer = tiny.trainer(callbacks=callbacks, max_epochs=3, default_root_dir=tmp_path)
        trainer.fit(module, tiny.loader(), tiny.loader(53, 10, seed=2))
        assert not module.encoder.linear_bottleneck._forward_hooks
        assert all(part.training for part in module.modules())
        trained.append((torch.rand(3), *module.parameters()))
    torch.testing.assert_close(trained[0], trained[1], rtol=0, atol=0)
    sanity_check, drawing = 2 + 1, tiny.DIM + 1
    assert module.decoder.modes.count(False) == sanity_check + 3 * 6 + drawing, "drawn once, of the last"
    assert module.decoder.modes.count(True) == 3 * 4


def test_no_hook_is_left_after_an_exception(tmp_path):
    class Failing(Callback):
        def on_train_epoch_end(self, *args):
            raise RuntimeError("on purpose")

    module = model()
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(None, Failing(), module=module, default_root_dir=tmp_path)
    assert not module.encoder.linear_bottleneck._forward_hooks


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # compiling looks at it
@pytest.mark.parametrize("when", ["before", "after the hook is set"])
def test_compiled_encoder_and_decoder(when, tmp_path):
    class Compile(Callback):
        def setup(self, trainer, pl_module, stage):
            pl_module.encoder = torch.compile(pl_module.encoder, backend="eager")
            pl_module.decoder = torch.compile(pl_module.decoder, backend="eager")

    module, callbacks = model(), [Compile()]
    if when == "before":
        Compile().setup(None, module, "fit")
        callbacks = []
    callback = LatentTraversal("encoder", image_shape=SHAPE, n_directions=3, steps=5)
    fit(callback, *callbacks, module=module, default_root_dir=tmp_path)
    assert_close(callback.picture, expected_picture(module, tiny.rows(53, seed=2)))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision(precision, tmp_path):
    _, module, callback = fit(precision=precision, default_root_dir=tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        expected = expected_picture(module, tiny.rows(53, seed=2))
    torch.testing.assert_close(callback.picture.int(), expected.int(), rtol=0, atol=2)


class Convolutional(tiny.TinyAutoencoder):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, tiny.DIM, 2, 2), nn.ConvTranspose2d(tiny.DIM, 3, 2, 2)
        self.decoder.bias.data.fill_(0.5)


def test_all_positions_of_an_image_latent_move_alike_and_colours_stay(tmp_path):
    torch.manual_seed(0)
    module, x = attach_linear_bottleneck(Convolutional(), dim=tiny.DIM, depth=2, gain=1.0), torch.rand(20, 3, 4, 6)
    callback = LatentTraversal(n_directions=2, steps=3)
    loader = DataLoader(TensorDataset(x), 8)
    tiny.trainer(callbacks=[callback], default_root_dir=tmp_path).validate(module, loader, verbose=False)
    with torch.no_grad():
        latents = module.encoder(x)
        along = traverse_principal_directions(row_moments(latents.movedim(1, -1).flatten(0, -2)), 2, 3).float()
        along = along[..., None, None].expand(-1, -1, -1, 2, 3)
        between = interpolate_latents(latents[0], latents[1], 3)[None]
        grids = [image_grid(module.decoder(part.flatten(0, 1)).unflatten(0, (-1, 3))) for part in (along, between)]
    assert_close(callback.picture, torch.cat(grids, 1))
    assert read(next(tmp_path.rglob("*.png"))).equal(callback.picture)


class Doubling(nn.ConvTranspose2d):
    def forward(self, z):
        return super().forward(2 * z)


class DoublingInPlace(nn.ConvTranspose2d):
    def forward(self, z):
        z.view(-1).mul_(2)
        return super().forward(z)


def test_a_decoder_may_view_its_latents_and_write_into_them(tmp_path):
    module, loader = Convolutional(), DataLoader(TensorDataset(torch.rand(20, 3, 4, 6)), 8)
    pictures = []
    for module.decoder.__class__ in (Doubling, DoublingInPlace):
        trainer = tiny.trainer(callbacks=[callback := LatentTraversal("encoder")], default_root_dir=tmp_path)
        trainer.validate(module, loader, verbose=False)
        pictures.append(callback.picture)
    assert torch.equal(*pictures)


class Variational(tiny.TinyAutoencoder):
    class Encoder(nn.Linear):
        def forward(self, x):
            mean = super().forward(x)
            return torch.ones_like(mean), mean

    def __init__(self):
        super().__init__()
        self.encoder = self.Encoder(tiny.FEATURES, tiny.DIM)

    def forward(self, x):
        return self.decoder(self.encoder(x)[1])


def test_one_of_several_outputs(tmp_path):
    module = Variational()
    callback = LatentTraversal("encoder", output=1, image_shape=SHAPE, n_directions=3, steps=5)
    fit(callback, module=module, default_root_dir=tmp_path)
    plain = nn.Linear(tiny.FEATURES, tiny.DIM)
    plain.load_state_dict(module.encoder.state_dict())
    module.encoder = plain
    assert_close(callback.picture, expected_picture(module, tiny.rows(53, seed=2)))
    with pytest.raises(ValueError, match=r"layer='encoder': .* it is not said which; pass output=0"):
        fit(LatentTraversal("encoder"), module=Variational(), default_root_dir=tmp_path)


def test_a_picture_that_a_broken_run_did_not_send_is_not_sent_by_the_next(tmp_path):
    class Failing(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise RuntimeError("on purpose")

    callback = LatentTraversal(image_shape=SHAPE)
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(callback, Failing(), default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="draws nothing"):
        fit(callback, limit_val_batches=0, default_root_dir=tmp_path)
    assert files(tmp_path) == []


class Logits(LatentTraversal):
    def to_images(self, decoded):
        return super().to_images(decoded["logits"].sigmoid())


def test_what_is_no_image_is_made_one_by_a_subclass(tmp_path):
    class Decoder(nn.Linear):
        def forward(self, z):
            return {"logits": super().forward(z)}

    class Module(tiny.TinyAutoencoder):
        def forward(self, x):
            return self.decoder(self.encoder(x))["logits"]

    module = attach_linear_bottleneck(Module(), dim=tiny.DIM, depth=2)
    module.decoder = Decoder(tiny.DIM, tiny.FEATURES)
    callback = Logits(image_shape=SHAPE, n_directions=3, steps=5)
    fit(callback, module=module, default_root_dir=tmp_path)
    linear = nn.Linear(tiny.DIM, tiny.FEATURES)
    linear.load_state_dict(module.decoder.state_dict())
    module.decoder = nn.Sequential(linear, nn.Sigmoid())
    assert_close(callback.picture, expected_picture(module, tiny.rows(53, seed=2)))


@pytest.mark.parametrize(
    ("image_shape", "message"),
    [
        (None, r"with 1 or 3 channels in \[0, 1\], got torch.float32 \(1, 10\); pass image_shape=\(C, H, W\)"),
        ((1, 3, 3), r"or vectors for image_shape=\(1, 3, 3\), got torch.float32 \(1, 10\); pass .*, or override"),
    ],
)
def test_a_decoder_that_returns_no_images_is_refused_in_the_sanity_check(image_shape, message, tmp_path):
    class Trains(Callback):
        def on_train_start(self, *args):
            raise AssertionError("too late")

    with pytest.raises(ValueError, match=r"decoder='decoder': expected it to return images .*" + message):
        fit(LatentTraversal(image_shape=image_shape), Trains(), num_sanity_val_steps=1, default_root_dir=tmp_path)


def test_bad_arguments_are_refused(monkeypatch):
    with pytest.raises(
        ValueError, match=r"layer: .* TinyAutoencoder, got 'linear_botleneck'; nearest: 'encoder.linear_bott"
    ):
        fit(LatentTraversal("linear_botleneck"))
    with pytest.raises(ValueError, match=r"decoder: .* TinyAutoencoder, got 'decode'; nearest: 'decoder'"):
        fit(LatentTraversal(decoder="decode"))
    with pytest.raises(TypeError, match="layer: expected the dotted name of a submodule, got list"):
        LatentTraversal(["encoder"])
    for name, bad, least in (("n_directions", 0, 1), ("steps", 1, 2), ("every_n_epochs", 0, 1)):
        with pytest.raises(ValueError, match=f"{name}: expected {least} or more.*, got {bad}"):
            LatentTraversal(**{name: bad})
    with pytest.raises(TypeError, match="every_n_epochs: expected an int of 1 or more, 'auto' or None, got 'always'"):
        LatentTraversal(every_n_epochs="always")
    for bad in ((8, 8), (2, 8, 8), (1, 0, 8)):
        with pytest.raises(ValueError, match=r"image_shape: expected \(C, H, W\) with 1 or 3 channels, got \("):
            LatentTraversal(image_shape=bad)
    monkeypatch.setattr("lightning_rank.callbacks.latent_traversal.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-rank\[plots\]'"):
        fit()


def test_no_latents_and_no_validation_data_are_said_once_and_training_goes_on(tmp_path):
    class Spoil(Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            batch[0].fill_(torch.nan)

    silent = "no sample came in this epoch of which the output of layer 'linear_bottleneck' is finite"
    with pytest.warns(UserWarning, match=silent) as warned:
        trainer, _, callback = fit(None, Spoil(), default_root_dir=tmp_path, max_epochs=3)
    assert sum(silent in str(w.message) for w in warned) == 1
    assert trainer.current_epoch == 3
    with pytest.warns(UserWarning, match="there is no validation data, so it draws nothing"):
        fit(callback, limit_val_batches=0, default_root_dir=tmp_path)
    assert callback.picture is None
    assert files(tmp_path) == []


def test_two_callbacks_and_a_monitor_side_by_side(tmp_path):
    first, second, monitor = (
        LatentTraversal(image_shape=SHAPE),
        LatentTraversal("encoder", image_shape=SHAPE),
        EffectiveRankMonitor(["decoder"]),
    )
    fit(first, second, monitor, max_epochs=1, default_root_dir=tmp_path)
    assert first.picture.equal(second.picture)
    assert files(tmp_path) == ["encoder-epoch=0-step=3.png", "linear_bottleneck-epoch=0-step=3.png"]
    assert monitor.history[0]["rank/decoder/samples"] == 53, "the decodings are no samples"


@pytest.mark.filterwarnings("ignore")  # what Lightning's command line uses of jsonargparse is its affair
def test_the_command_line_sets_it_up(monkeypatch):
    monkeypatch.setattr("sys.argv", ["main.py"])
    options = "{'layer': 'encoder', 'image_shape': [1, 2, 5], 'steps': 3}"
    callbacks = f"[{{'class_path': 'lightning_rank.LatentTraversal', 'init_args': {options}}}]"
    arguments = [f"--trainer.callbacks={callbacks}"]
    cli = LightningCLI(tiny.TinyMixedIn, run=False, seed_everything_default=False, args=arguments)
    (callback,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, LatentTraversal)]
    assert (callback.layer, callback.image_shape, callback.steps) == ("encoder", (1, 2, 5), 3)


class Gather(Callback):
    def __init__(self, directory, callback):
        self.directory, self.callback = directory, callback

    def on_fit_end(self, trainer, pl_module):
        torch.save(self.callback.picture, self.directory / f"{trainer.global_rank}.pt")


class Sharded(nn.Linear):
    """Waits for the other processes in each forward, as a decoder does whose weights are spread over them."""

    def forward(self, z):
        if torch.distributed.is_initialized():
            torch.distributed.monitored_barrier(timeout=timedelta(seconds=20))
        return super().forward(z)


@pytest.mark.parametrize("rows", [31, 1])
def test_two_processes_draw_the_picture_of_one(rows, tmp_path):
    callback = LatentTraversal(image_shape=SHAPE, n_directions=3, steps=5)
    module, val = model(lr=0.0), tiny.loader(rows, 4, seed=2)
    module.decoder.__class__ = Sharded
    options = {"max_epochs": 1, "devices": 2, "strategy": "ddp_fork", "default_root_dir": tmp_path}
    fit(callback, Gather(tmp_path, callback), module=module, val=val, **options)
    expected = expected_picture(module, tiny.rows(rows, seed=2))
    pictures = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert pictures[0].equal(pictures[1])
    assert_close(pictures[0], expected)
    assert read(next(tmp_path.rglob("*.png"))).equal(pictures[0])
    assert len(files(tmp_path)) == 1

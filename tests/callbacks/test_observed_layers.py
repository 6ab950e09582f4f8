"""Which numbers of which tensor EffectiveRankMonitor takes: those that NumPy takes, for layers of any kind."""

from dataclasses import dataclass

import numpy as np
import pytest
import reference
import tiny
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, func, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from lightning_rank import EffectiveRankMonitor, attach_linear_bottleneck, truncate_linear_bottleneck
from lightning_rank.callbacks._samples import agreed_samples
from lightning_rank.metrics import LatentSpectrum


class Module(LightningModule):
    """Whatever it is given to run; what ``step`` returns of a batch is nobody's affair."""

    def __init__(self, net, step=None):
        super().__init__()
        self.net, self.step = net, step or (lambda net, batch: net(batch[0]))
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.step(self.net, batch)

    def validation_step(self, batch, batch_idx):
        self.step(self.net, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def deviations(layer, data, net, *, step=None, callbacks=(), **options):
    """The spectrum of a layer that the monitor finds, and how many rows, when a data set is validated."""
    monitor = EffectiveRankMonitor(layer, **options)
    loader = data if isinstance(data, DataLoader) else DataLoader(TensorDataset(*data), 8)
    (metrics,) = tiny.trainer(callbacks=[*callbacks, monitor]).validate(Module(net, step), loader, verbose=False)
    return monitor.singular_values[layer], metrics["rank/samples"]


def assert_spectrum(found, rows):
    """``found`` is that of rows ``(..., dim)`` by NumPy's SVD."""
    spectrum, samples = found
    rows = rows.detach().reshape(-1, rows.shape[-1]).double().numpy()
    assert samples == len(rows)
    torch.testing.assert_close(spectrum, torch.tensor(reference.deviations(rows)), rtol=1e-6, atol=1e-7)


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3, padding=1)

    def forward(self, x):
        return self.conv(x).movedim(1, -1)


LAYOUTS = {
    "Conv1d": (lambda: nn.Conv1d(1, 5, 3, padding=1), (1, 16), 1),
    "Conv2d": (lambda: nn.Conv2d(1, 5, 3, padding=1), (1, 6, 7), 1),
    "Conv3d": (lambda: nn.Conv3d(1, 5, 3, padding=1), (1, 4, 6, 7), 1),
    "Conv1d, as long as wide": (lambda: nn.Conv1d(1, 5, 3, padding=1), (1, 5), 1),
    "channels last": (ChannelsLast, (1, 6, 7), -1),
    "tokens": (lambda: nn.Linear(3, 5), (7, 3), -1),
    "steps": (lambda: nn.Sequential(nn.Conv1d(1, 5, 3), nn.BatchNorm1d(5), nn.ReLU()), (1, 16), 1),
    "pooled": (lambda: nn.Sequential(nn.Conv2d(1, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (1, 6, 7), 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_position_is_a_row_and_the_layer_says_which_axis_holds_the_features(layout):
    make, shape, axis = LAYOUTS[layout]
    net, x = make(), torch.randn(20, *shape)
    assert_spectrum(deviations("net", (x,), net), net.eval()(x).movedim(axis, -1))


class Attributes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv1d(1, 5, 3), nn.ReLU()

    def forward(self, x):
        return self.act(self.conv(x))


class Gated(nn.Module):
    """The layer that was added last is not the one that makes the output."""

    def __init__(self):
        super().__init__()
        self.up, self.gate = nn.Linear(6, 8), nn.Linear(6, 16)

    def forward(self, x):
        return self.up(x) * self.gate(x).amax(-1, keepdim=True)


def test_behind_a_convolution_at_some_distance():
    x = torch.randn(24, 1, 16)
    net = nn.Sequential(nn.Conv1d(1, 5, 3), nn.Sequential(nn.ReLU(), nn.Dropout(0.1)))
    for layer in ("net.1", "net.1.0"):
        assert_spectrum(deviations(layer, (x,), net), net.eval()(x).movedim(1, -1))
    halved = nn.Sequential(nn.Conv1d(1, 16, 1), nn.GLU(1))
    for net, data in ((Attributes(), x), (Gated(), torch.randn(24, 16, 6)), (halved, x)):
        layer = "net.act" if isinstance(net, Attributes) else "net"
        with pytest.raises(ValueError, match=f"layer='{layer}': feature_axis: expected to see which axis"):
            deviations(layer, (data,), net)
    with pytest.raises(ValueError, match="axis 1 is 16 wide, and so is a layer that works on the last one"):
        deviations("net", (torch.randn(24, 16, 6),), Gated())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_a_mask_holds_for_nested_tensors_too():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    net, x = nn.TransformerEncoder(layer, 2), torch.randn(16, 5, 8)
    padded, first = torch.zeros(2, 16, 5, dtype=torch.bool)
    padded[:, 4], padded[0, 4], first[:, 0] = True, False, True

    def step(net, batch):
        return net(batch[0], src_key_padding_mask=batch[1])

    found = [deviations(of, (x, padded, first), net, step=step, mask=2) for of in ("net", "net.layers.1")]
    assert [samples for _, samples in found] == [16, 16]
    torch.testing.assert_close(found[0][0], found[1][0])
    _, samples = deviations("net.layers.1", (x, padded, ~padded), net, step=step, mask=2)
    assert samples == 65


def test_a_mask_of_other_numbers_is_refused():
    added = torch.zeros(16, 5)
    added[:, 3:] = -torch.inf
    with pytest.raises(ValueError, match="mask: expected 1 where a position counts and 0 elsewhere"):
        deviations("net", (torch.randn(16, 5, 8), added), nn.Linear(8, 3), mask=1)


def test_closures_that_run_a_batch_again_add_no_rows():
    class Quadratic(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)

        def training_step(self, batch, batch_idx):
            return (self.net(batch[0]) - 1).square().mean()

        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), max_iter=5)

    monitor = EffectiveRankMonitor("net", stage="train")
    loader = DataLoader(TensorDataset(torch.randn(40, 4)), 10)
    tiny.trainer(callbacks=[monitor], max_epochs=1).fit(Quadratic(), loader)
    assert monitor.history[0]["rank/train/samples"] == 40


def test_two_monitors_of_one_layer_with_keys_of_their_own():
    monitors = [EffectiveRankMonitor("net"), EffectiveRankMonitor(["net"]), EffectiveRankMonitor("net", name="a")]
    trainer = tiny.trainer(callbacks=[*monitors, EffectiveRankMonitor("net", at="input", name="b")])
    data = DataLoader(TensorDataset(torch.randn(16, 4)), 8)
    (metrics,) = trainer.validate(Module(nn.Linear(4, 3)), data, verbose=False)
    assert {"rank/effective", "rank/net/effective", "rank/a/effective", "rank/b/effective"} <= set(metrics)
    with pytest.raises(ValueError, match="name: expected a word without spaces and slashes"):
        EffectiveRankMonitor("net", name="a b")


def test_a_share_of_the_rows_of_each_batch():
    net, x = nn.Conv2d(1, 5, 3, padding=1), torch.randn(20, 1, 6, 7)
    found, samples = deviations("net", (x,), net, max_rows=100)
    expected = LatentSpectrum(5, feature_axis=1, max_rows=100)
    for batch in x.split(8):
        expected.update(net(batch))
    # One row in four of 8 x 42, twice, and one in two of 4 x 42.
    assert samples == expected.samples == 84 + 84 + 84
    torch.testing.assert_close(found, expected.compute())
    with pytest.raises(ValueError, match="max_rows: expected 1 or more or None, got 0"):
        EffectiveRankMonitor(max_rows=0)


def test_the_axis_can_be_said_and_has_to_be_where_nothing_decides():
    class Mixed(nn.Module):
        def forward(self, x):
            return x

    net, x = Mixed(), torch.randn(20, 3, 4, 6)
    assert_spectrum(deviations("net", (x,), net, feature_axis=2), x.movedim(2, -1))
    with pytest.raises(ValueError, match=r"layer='net': feature_axis: expected to see which axis .* pass feature_axis"):
        deviations("net", (x,), net)


class Quantizer(nn.Module):
    """Has an embedding as wide as the latents, and takes them with their channels in front."""

    def __init__(self):
        super().__init__()
        self.codes = nn.Embedding(4, 5)

    def forward(self, z):
        return z + self.codes.weight[0, :, None, None]


class Doubling(nn.Module):
    """Does not say what it does with the channels."""

    def forward(self, x):
        return 2 * x


def doubled():
    return nn.Sequential(nn.Conv2d(1, 5, 3), Doubling()), nn.Conv2d(5, 1, 1)


PLACES = {
    "in front of an embedding": (lambda: (nn.Conv2d(1, 5, 3), Quantizer()), {"before": "1"}, {}),
    "behind who knows what": (doubled, {"after": "0"}, {}),
    "truncated": (doubled, {"after": "0"}, {"rank": 3}),
    "folded": (doubled, {"after": "0"}, {"rank": 3, "fold": True}),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_axis_of_a_bottleneck_is_the_one_that_it_finds_itself(place):
    make, options, cut = PLACES[place]
    net, x = attach_linear_bottleneck(nn.Sequential(*make()), **options, dim=5).eval(), torch.randn(20, 1, 6, 8)
    if cut:
        truncate_linear_bottleneck(net, [x], **cut)
    name, bottleneck = next(pair for pair in net.named_modules() if pair[0].endswith("linear_bottleneck"))
    seen = []
    handle = bottleneck.register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
    net(x)
    handle.remove()
    assert [latents.shape[1] for latents in seen] == [5, 3 if "fold" in cut else 5]
    assert_spectrum(deviations(f"net.{name}", (x,), net, at="input"), seen[0].movedim(1, -1))
    assert_spectrum(deviations(f"net.{name}", (x,), net), seen[1].movedim(1, -1))


def test_a_sequence_that_is_as_long_as_it_is_wide_does_not_end_what_has_begun():
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    batches = [[torch.randn(4, length, 8)] for length in (5, 8, 3)]
    loader = DataLoader(batches, batch_size=None)
    rows = torch.cat([net.eval()(x).reshape(-1, 8) for (x,) in batches])
    assert_spectrum(deviations("net", loader, net), rows)
    with pytest.raises(ValueError, match=r"shape \(4, 8, 8\) .* both are 8 wide"):
        deviations("net", DataLoader(batches[1:2], batch_size=None), net)


class Own(nn.Module):
    """An activation of somebody's own."""

    def forward(self, x):
        return x * x.sigmoid()


class Swap(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class NormOfTokens(nn.Module):
    """As speech models have it: channels first, but for the norm."""

    def __init__(self, act):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv1d(1, 5, 3), nn.LayerNorm(5), act

    def forward(self, x):
        return self.act(self.norm(self.conv(x).mT).mT)


def test_a_layer_that_nobody_knows_does_not_hide_that_the_features_may_be_in_front():
    x = torch.randn(24, 1, 16)
    for act, layer in ((nn.ReLU(), "that works on the last one"), (Own(), "behind which something unknown may come")):
        net = NormOfTokens(act)
        with pytest.raises(ValueError, match=rf"shape \(8, 5, 14\) .* axis 1 is 5 wide, and so is a layer {layer}, "):
            deviations("net", (x,), net)
        assert_spectrum(deviations("net", (x,), net, feature_axis=1), net(x).mT)
    with pytest.raises(ValueError, match=r"axis 1 is 5 wide"):
        deviations("net", (torch.randn(24, 7, 3),), nn.Sequential(nn.Linear(3, 5), Swap()))
    for net in (nn.Sequential(nn.Linear(3, 5), Own()), nn.Sequential(nn.Linear(3, 10), nn.GLU()), Own()):
        tokens = torch.randn(24, 7, 3)
        assert_spectrum(deviations("net", (tokens,), net), net(tokens))


@dataclass
class ModelOutput:
    last: Tensor
    hidden_states: tuple[Tensor, ...]


class Transformer(nn.Module):
    def __init__(self, returns):
        super().__init__()
        self.first, self.second, self.returns = nn.Linear(3, 6), nn.Linear(6, 4), returns

    def forward(self, x):
        hidden = self.first(x)
        return self.returns(self.second(hidden), (x, hidden))


@pytest.mark.parametrize(
    ("returns", "output"),
    [
        (ModelOutput, ("hidden_states", -1)),
        (ModelOutput, lambda output: output.hidden_states[1]),
        (lambda last, hidden: {"last": last, "more": {"hidden": list(hidden)}}, ("more", "hidden", 1)),
        (lambda last, hidden: (last, hidden), (1, 1)),
    ],
    ids=["model output", "function", "nested mapping", "nested tuple"],
)
def test_one_of_many_outputs(returns, output):
    net, x = Transformer(returns), torch.randn(20, 3)
    assert_spectrum(deviations("net", (x,), net, output=output), net.first(x))


def test_a_path_that_stops_too_early_is_told_how_it_goes_on():
    net = Transformer(lambda last, hidden: (last, {"hidden": hidden}))
    with pytest.raises(TypeError, match=r"tensor at output=1, got dict with tensors at \('hidden', 0\), .*; go on"):
        deviations("net", (torch.randn(20, 3),), net, output=1)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, latents, scale, *, shift=None):
        return self.linear(latents.mul_(2)) * scale + (0 if shift is None else shift)


@pytest.mark.parametrize(("output", "given"), [(0, 0), ("shift", 2)])
def test_the_input_of_a_layer_as_it_was_before_the_layer_wrote_into_it(output, given):
    data = (torch.randn(20, 4), torch.randn(20, 2), torch.randn(20, 2))
    net = Head()

    def step(net, batch):
        net(batch[0].clone(), batch[1], shift=batch[2])

    assert_spectrum(deviations("net", data, net, step=step, at="input", output=output), data[given])
    with pytest.raises(ValueError, match=r"input of layer='net': .* at 0, 1, 'shift', and it is not said which"):
        deviations("net", data, net, step=step, at="input")


def test_the_input_of_a_layer_that_is_given_one_tensor():
    net, x = nn.Sequential(nn.Conv1d(2, 6, 3), nn.Conv1d(6, 4, 1)), torch.randn(20, 2, 9)
    assert_spectrum(deviations("net.1", (x,), net, at="input"), net[0](x).movedim(1, -1))


class Dicts(torch.utils.data.Dataset):
    """Sequences of different lengths, padded with what would show."""

    def __init__(self, n=20, length=7):
        self.lengths = [1 + index % length for index in range(n)]
        self.x = torch.randn(n, length, 3)
        self.mask = torch.tensor([[int(t < most) for t in range(length)] for most in self.lengths])
        self.x[self.mask == 0] = 100.0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "attention_mask": self.mask[index]}


@pytest.mark.parametrize("mask", ["attention_mask", lambda batch: batch["attention_mask"] > 0], ids=["key", "function"])
def test_padding_does_not_count(mask):
    data, net = Dicts(), nn.Linear(3, 5)
    found = deviations("net", DataLoader(data, 6), net, step=lambda net, batch: net(batch["x"]), mask=mask)
    assert_spectrum(found, net(data.x[data.mask.bool()]))


def test_a_mask_of_samples_masks_all_their_positions_and_one_of_another_shape_is_refused():
    x, net = torch.randn(20, 2, 9), nn.Conv1d(2, 4, 1)
    keep = torch.arange(20) % 3 > 0
    assert_spectrum(deviations("net", (x, keep), net, mask=1), net(x[keep]).movedim(1, -1))
    with pytest.raises(
        ValueError, match=r"mask: expected shape \(8, 9\), the positions of layer='net' .* got \(8, 2\)"
    ):
        deviations("net", (x, keep), net, mask=lambda batch: batch[0][:, :, 0] > 0)


def padded(mask):
    def step(net, batch):
        net(batch[0], src_key_padding_mask=mask.expand(len(batch[0]), -1))

    return step


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layer", ["layers.0", "layers.0.linear1", "layers.1.self_attn"])
def test_layers_of_a_padded_transformer_encoder_give_nested_tensors(layer):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    net, x, mask = nn.TransformerEncoder(encoder, 2), torch.randn(16, 5, 8), torch.arange(5) > 2
    spectrum, samples = deviations(f"net.{layer}", (x,), net, step=padded(mask))
    seen = []
    hook = net.get_submodule(layer).register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        net.eval()(x, src_key_padding_mask=mask.expand(16, -1))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
        hook.remove()
    rows = seen[0].detach()[:, :3].flatten(0, 1)
    assert samples == len(rows) == 48
    torch.testing.assert_close(spectrum, torch.tensor(reference.deviations(rows.numpy())), rtol=1e-4, atol=1e-6)


def test_calls_that_the_mask_does_not_fit_have_a_place_where_they_do_not_count():
    class Generating(Module):
        """Tokens one by one, as language models generate them, behind the step."""

        def on_validation_batch_end(self, outputs, batch, batch_idx):
            self.net(batch[0][:, :1])

    def step(net, batch):
        net(batch[0])
        net(batch[0][:, :1])

    def mask(batch):
        return batch[1]

    net, data = nn.Linear(3, 5), (torch.randn(20, 7, 3), torch.rand(20, 7) > 0.5)
    with pytest.raises(ValueError, match=r"mask: expected shape \(8, 1\), .* got \(8, 7\); .* on_validation_batch_end"):
        deviations("net", data, net, step=step, mask=mask)
    monitor, loader = EffectiveRankMonitor("net", mask=mask), DataLoader(TensorDataset(*data), 8)
    (metrics,) = tiny.trainer(callbacks=[monitor]).validate(Generating(net), loader, verbose=False)
    assert_spectrum((monitor.singular_values["net"], metrics["rank/samples"]), net(data[0])[data[1]])


def test_a_layer_that_is_called_with_several_widths_is_refused():
    def step(net, batch):
        net(batch[0][:, :2])
        net(batch[0])

    with pytest.raises(ValueError, match=r"expected 2 features, .* got shape \(8, 3\); every call of the layer counts"):
        deviations("net", (torch.randn(20, 3),), nn.ReLU(), step=step)


def test_what_a_wide_layer_costs_is_said_once(monkeypatch):
    monkeypatch.setattr("lightning_rank.callbacks._tap._WIDE", 2)
    monitor, loader = EffectiveRankMonitor("net"), DataLoader(TensorDataset(torch.randn(20, 3)), 8)
    with pytest.warns(UserWarning, match="takes 0.0 GB") as caught:
        tiny.trainer(callbacks=[monitor]).fit(Module(nn.Linear(3, 3)), loader, loader)
    (said,) = [str(warned.message) for warned in caught if "features" in str(warned.message)]
    assert said.startswith("layer='net' has 3 features, so that its spectrum takes 0.0 GB")


def test_several_calls_in_a_step_all_count():
    views = torch.randn(20, 3), torch.randn(20, 3)
    net = nn.Linear(3, 5)
    found = deviations("net", views, net, step=lambda net, batch: (net(batch[0]), net(batch[1])))
    assert_spectrum(found, net(torch.cat(views)))


TRANSFORMS = {
    "jvp": lambda net, x: func.jvp(net, (x,), (torch.ones_like(x),)),
    "grad": lambda net, x: func.grad(lambda x: net(x).sum())(x),
    "vmap": lambda net, x: func.vmap(net)(x),
    "jacobians of samples": lambda net, x: func.vmap(func.jacrev(net))(x),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which torch itself calls for jvp
@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_runs_under_a_transform_is_no_row_and_the_plain_calls_beside_it_are(name):
    def step(net, batch):
        net(batch[0])
        TRANSFORMS[name](net, batch[0])

    net, x = nn.Linear(3, 5), torch.randn(20, 3)
    assert_spectrum(deviations("net", (x,), net, step=step), net(x))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.inner, self.reentrant = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)), reentrant

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("backward", ["manual_backward", "backward of torch"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_does_not_count_rows_twice_whoever_calls_backward(reentrant, backward):
    net, x = Checkpointed(reentrant), torch.randn(20, 3)
    module = Module(net)

    def step(net, batch):
        loss = net(batch[0].requires_grad_()).square().sum()
        module.manual_backward(loss) if backward == "manual_backward" else loss.backward()
        loss = net(batch[0]).square().sum()  # and once more, as in a network trained against another
        module.manual_backward(loss) if backward == "manual_backward" else loss.backward()

    module.step = step
    monitor = EffectiveRankMonitor("net.inner.0", stage="train")
    tiny.trainer(callbacks=[monitor], max_epochs=1).fit(module, DataLoader(TensorDataset(x), 8))
    assert monitor.history[0]["rank/train/samples"] == 40
    rows = np.repeat(net.inner[0](x).detach().numpy(), 2, axis=0)
    expected = torch.tensor(reference.deviations(rows))
    torch.testing.assert_close(monitor.singular_values["net.inner.0"], expected, rtol=1e-6, atol=1e-7)


class Evaluator(Callback):
    """Runs the module on a batch that was just seen, as online evaluators do."""

    def __init__(self, hooks):
        for hook in hooks:
            setattr(self, hook, self.run)

    def run(self, trainer, pl_module, *args, **kwargs):
        batch = next(arg for arg in args if isinstance(arg, list))
        with torch.no_grad():
            pl_module.net(batch[0])


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("stage", ["validate", "train"])
def test_callbacks_that_run_the_module_add_no_rows_wherever_they_are_in_the_list(stage, first):
    name = {"validate": "validation", "train": "train"}[stage]
    evaluator = Evaluator([f"on_{name}_batch_start", f"on_{name}_batch_end"])
    monitor = EffectiveRankMonitor("net", stage=stage)
    callbacks = [evaluator, monitor] if first else [monitor, evaluator]
    loader = DataLoader(TensorDataset(torch.randn(20, 3)), 8)
    tiny.trainer(callbacks=callbacks, max_epochs=1).fit(Module(nn.Linear(3, 5)), loader, loader)
    assert monitor.history[0]["rank/samples" if stage == "validate" else "rank/train/samples"] == 20


def test_loaders_that_are_read_side_by_side_are_one_split():
    x = torch.randn(20, 3)
    loaders = CombinedLoader({"a": DataLoader(x, 4), "b": DataLoader(x + 1, 4)}, "max_size")
    net = nn.Linear(3, 5)
    monitor = EffectiveRankMonitor("net")
    module = Module(net, lambda net, batch: (net(batch["a"]), net(batch["b"])))
    tiny.trainer(callbacks=[monitor]).validate(module, loaders, verbose=False)
    expected = torch.tensor(reference.deviations(net(torch.cat([x, x + 1])).detach().numpy()))
    torch.testing.assert_close(monitor.singular_values["net"], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore")  # what Lightning's command line uses of jsonargparse is its affair
def test_all_of_it_can_be_said_on_the_command_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["main.py"])
    said = {
        "layer": ["encoder", "decoder"],
        "at": "input",
        "output": ["hidden_states", -1],
        "feature_axis": 1,
        "mask": "attention_mask",
        "every_n_train_steps": 100,
        "name": "teacher",
        "log_spectrum_every_n_epochs": "auto",
    }
    callbacks = f"[{{'class_path': 'lightning_rank.EffectiveRankMonitor', 'init_args': {said}}}]"
    arguments = [f"--trainer.callbacks={callbacks}"]
    cli = LightningCLI(tiny.TinyMixedIn, run=False, seed_everything_default=False, args=arguments)
    (monitor,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, EffectiveRankMonitor)]
    assert (monitor.layers, monitor.name, monitor.every_n_train_steps) == (["encoder", "decoder"], "teacher", 100)
    assert (monitor.at, monitor.output, monitor.feature_axis) == ("input", ["hidden_states", -1], 1)
    assert monitor.mask == "attention_mask"


def test_of_several_loaders_of_a_batch_the_padding_counts_that_all_have():
    def loader(n):
        return DataLoader(range(n), 4, sampler=DistributedSampler(range(n), 2, 1, shuffle=False))

    assert agreed_samples([loader(23)], 2) == (4, 3)
    assert agreed_samples([loader(23), loader(23)], 2) == (4, 3)
    assert agreed_samples([loader(23), loader(24)], 2) is None

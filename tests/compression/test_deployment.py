"""A truncated model is saved, loaded, exported and run elsewhere, with the same outputs."""

import copy

import onnx
import onnxruntime
import pytest
import tiny
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from test_truncation import SHAPES, Net, attached
from torch import nn
from torch.utils.data import DataLoader

from lightning_rank import attach_linear_bottleneck, load_truncated, truncate_linear_bottleneck

FOLDS = pytest.mark.parametrize("fold", [False, True], ids=["two maps", "folded"])


@FOLDS
@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_weights_go_into_a_fresh_module(kind, fold, tmp_path):
    make, shape = SHAPES[kind]
    net, x = make().eval(), torch.randn(shape)
    truncate_linear_bottleneck(net, DataLoader(x, 32), rank=3, fold=fold)
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    fresh = make().eval()
    load_truncated(fresh, torch.load(tmp_path / "weights.pt"))
    assert torch.equal(fresh(x), net(x))
    assert not any(child.training for child in fresh.modules())


def test_weights_of_a_fold_at_full_rank_into_a_layer_without_bias_are_loaded_too():
    def make():
        return attached(lambda: Net(nn.Linear(10, 6), nn.Linear(6, 10, bias=False)))

    net, fresh, x = make(), make(), torch.randn(50, 10)
    truncate_linear_bottleneck(net, DataLoader(x, 10), rank=6, fold=True)
    load_truncated(fresh, net.state_dict())
    assert torch.equal(fresh(x), net(x))


@FOLDS
def test_a_lightning_checkpoint_goes_into_a_fresh_module_and_trains_on(fold, tmp_path):
    model = tiny.TinyMixedIn(depth=4)
    tiny.trainer().fit(model, tiny.loader())
    truncate_linear_bottleneck(model, tiny.loader(), rank=2, fold=fold)
    checkpoint = ModelCheckpoint(tmp_path, "last")
    tiny.trainer(callbacks=[checkpoint], enable_checkpointing=True, max_epochs=1).fit(model, tiny.loader())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    loaded = tiny.TinyMixedIn(**saved["hyper_parameters"])
    load_truncated(loaded, saved["state_dict"])
    x = tiny.rows()
    assert torch.equal(loaded(x), model(x))
    tiny.trainer(max_epochs=1).fit(loaded, tiny.loader())
    assert not torch.equal(loaded(x), model(x))


def test_weights_of_something_else_are_refused():
    net = attached()
    with pytest.raises(ValueError, match=r"state_dict: expected that of a truncated module, with 'encoder.linear_b"):
        load_truncated(net, net.state_dict())
    truncated = attached()
    truncate_linear_bottleneck(truncated, torch.randn(50, 6), rank=2, fold=True)
    with pytest.raises(ValueError, match="module: expected a LinearBottleneck, but that of Net is truncated already"):
        load_truncated(copy.deepcopy(truncated), truncated.state_dict())
    wider = attach_linear_bottleneck(Net(nn.Linear(10, 6), nn.Sequential(nn.Linear(6, 30))), dim=6)
    with pytest.raises(RuntimeError, match=r"size mismatch|Unexpected key"):
        load_truncated(wider, truncated.state_dict())
    narrow, other = (
        attached(lambda width=width: Net(nn.Linear(10, 6), nn.Sequential(nn.Linear(6, 4), nn.Linear(width, 9))))
        for width in (4, 5)
    )
    truncate_linear_bottleneck(narrow, torch.randn(50, 6), rank=4, fold=True)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_truncated(other, narrow.state_dict())


@FOLDS
@pytest.mark.parametrize("kind", ["(B, dim)", "(B, T, dim)", "(B, dim, H, W)", "mixin"])
@torch.no_grad()
def test_it_exports(kind, fold):
    make, shape = SHAPES[kind]
    net, x = make().eval(), torch.randn(shape)
    truncate_linear_bottleneck(net, DataLoader(x, 32), rank=3, fold=fold)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(x[:5]), net(x[:5]))


@FOLDS
@pytest.mark.parametrize("kind", ["(B, dim)", "(B, dim, H, W)"])
@pytest.mark.filterwarnings("ignore")  # what the exporter warns of is its own affair
@torch.no_grad()
def test_onnxruntime_gives_the_same_outputs(kind, fold, tmp_path):
    make, shape = SHAPES[kind]
    net, x = make().eval(), torch.randn(shape)
    truncate_linear_bottleneck(net, DataLoader(x, 32), rank=3, fold=fold)
    batch = torch.export.Dim("batch")
    path = tmp_path / "model.onnx"
    torch.onnx.export(net, (x,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x[:5].numpy()})
    torch.testing.assert_close(torch.from_numpy(output), net(x[:5]), rtol=1e-5, atol=1e-5)
    weights = {tuple(weight.dims) for weight in onnx.load(path).graph.initializer}
    assert not any(shape[:2] == (6, 6) for shape in weights), "no matrix of the full width is left"

"""Ways to run linear layers: in sequence, composed, in pairs, as a graph; and the steps to time them by."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_rank import LinearBottleneck


def in_sequence(bottleneck: LinearBottleneck) -> nn.Sequential:
    """The same weights, layer by layer."""
    layers = []
    for layer in bottleneck.layers:
        linear = nn.Linear(bottleneck.dim, bottleneck.dim, bias=False, device="meta")
        linear.weight = nn.Parameter(layer.weight.detach().clone())
        layers.append(linear)
    return nn.Sequential(*layers)


class Composed(nn.Module):
    """Always composed first, to find the number of rows from which that is faster."""

    def __init__(self, bottleneck: LinearBottleneck) -> None:
        super().__init__()
        self.bottleneck = bottleneck

    def forward(self, rows: Tensor) -> Tensor:
        """Compose, whatever the number of rows."""
        return nn.functional.linear(rows, self.bottleneck.weight)


class Tree(nn.Module):
    """The product pair by pair, all pairs of a level in one launch."""

    def __init__(self, bottleneck: LinearBottleneck) -> None:
        super().__init__()
        self.bottleneck = bottleneck

    def forward(self, rows: Tensor) -> Tensor:
        """Compose a number of layers that is a power of two."""
        weights = torch.stack([layer.weight for layer in self.bottleneck.layers])
        while len(weights) > 1:
            weights = torch.bmm(weights[1::2], weights[0::2])
        return nn.functional.linear(rows, weights[0])


def training_step(module: nn.Module, rows: Tensor, autocast: bool = False) -> Callable[[], None]:
    """Forward and backward, down to the gradient of the input."""
    rows = rows.clone().requires_grad_()
    gradient = torch.randn_like(rows, dtype=torch.bfloat16 if autocast else None)

    def step() -> None:
        module.zero_grad()
        rows.grad = None
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=autocast):
            output = module(rows)
        output.backward(gradient)

    return step


def evaluation(module: nn.Module, rows: Tensor) -> Callable[[], Tensor]:
    """Forward without gradients."""
    module.eval()

    def call() -> Tensor:
        with torch.no_grad():
            return module(rows)

    return call


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether matrix products of float32 may be rounded to TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def graphed(module: nn.Module, rows: Tensor) -> Callable[[], None]:
    """A training step as one CUDA graph."""
    step = training_step(module, rows)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def saved_bytes(module: nn.Module, rows: Tensor) -> int:
    """What the forward pass keeps for the backward pass, parameters left out."""
    storages: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(rows.requires_grad_())
    assert output.requires_grad
    return sum(storages.values())


def whole_step(module: Any, batch: list[Tensor]) -> Callable[[], None]:
    """Forward, backward and update of a LightningModule."""
    module.log = lambda *args, **kwargs: None
    optimizer = module.configure_optimizers()

    def step() -> None:
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()

    return step

"""The latents of data: what comes out of the bottleneck, and their moments."""

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_rank.functional._feature_axis import as_rows, feature_axis_of, shape_of
from lightning_rank.functional.moments import Moments, finite_moments
from lightning_rank.nn.linear_bottleneck import LinearBottleneck
from lightning_rank.nn.truncated_bottleneck import TruncatedBottleneck


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients and compiled code; each submodule's own mode comes back."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        # Compiled code would not notice a hook, and what is made in inference mode could not be trained.
        with torch.inference_mode(False), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for child, training in modes.items():
            child.training = training


def random_state_kept(module: nn.Module) -> AbstractContextManager[None]:
    """What is drawn inside, on the host and on the module's devices, leaves the random state as it was."""
    return torch.random.fork_rng({parameter.device for parameter in module.parameters() if parameter.is_cuda})


def check_data(data: Any) -> None:
    """Refuse what is neither latents nor batches.

    Raises:
        TypeError: It is neither.
    """
    if not isinstance(data, Iterable) or isinstance(data, str | bytes | Mapping):
        raise TypeError(f"data: expected latents or a dataloader of training batches, got {type(data).__name__}")


def input_of(batch: Any, device: torch.device) -> Tensor:
    """What of a batch goes into the module.

    Raises:
        TypeError: It is no tensor.
    """
    input = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(input, Tensor):
        first = "" if input is batch else f" that starts with a {type(input).__name__}"
        raise TypeError(
            f"data: expected batches that are a tensor, or a tuple or list that starts with one, got "
            f"{type(batch).__name__}{first}; pass the latents themselves"
        )
    return input.to(device)


def latent_moments(module: nn.Module, bottleneck: LinearBottleneck, data: Tensor | Iterable[Any]) -> Moments:
    """The moments of latents, or of what comes out of the bottleneck when the module runs on batches.

    Raises:
        TypeError: A batch has no tensor to go in, or latents are not real and floating-point.
        ValueError: The module does not call its bottleneck; or latents are not as wide as it is or have NaN.
    """
    if isinstance(data, Tensor):
        return finite_moments([latent_rows(data, bottleneck)], "data")
    with closing(_latents_of_batches(module, bottleneck, data)) as latents:  # or its hook would stay after an error
        return finite_moments((latent_rows(part, bottleneck) for part in latents), "data")


def _latents_of_batches(
    module: nn.Module, bottleneck: LinearBottleneck, batches: Iterable[Any]
) -> Generator[Tensor, None, None]:
    found: list[Any] = []
    # Copies, before anybody else has them: what is behind may write into them.
    hook = bottleneck.register_forward_hook(
        lambda module, args, output: found.append(output.detach().clone()), prepend=True
    )
    try:
        for batch in batches:
            module(input_of(batch, bottleneck.weight.device))
            if not found:
                raise ValueError(
                    "data: the forward pass of module did not call the bottleneck; pass the latents themselves"
                )
            yield from found
            found.clear()
    finally:
        hook.remove()


def axis_of(latents: Tensor, bottleneck: LinearBottleneck | TruncatedBottleneck) -> int:
    """Where the bottleneck has the features of these latents."""
    return feature_axis_of(latents, bottleneck.feature_axis, bottleneck.dim, bottleneck.beside)


def latent_rows(latents: Tensor, bottleneck: LinearBottleneck) -> Tensor:
    """Every position of the latents as a row, shape ``(rows, dim)``.

    Raises:
        TypeError: They are not real and floating-point.
        ValueError: They are not as wide as the bottleneck.
    """
    if not latents.is_floating_point():
        raise TypeError(f"data: expected real floating-point latents, got {latents.dtype}")
    axis, shape = axis_of(latents, bottleneck), shape_of(latents)
    if len(shape) < 2 or shape[axis] != bottleneck.dim:
        raise ValueError(
            f"data: expected latents with {bottleneck.dim} features on axis {axis} of at least two, got shape {shape}"
        )
    return as_rows(latents.detach(), axis)

"""A hook on one layer that feeds spectra with the rows that count."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_rank.callbacks._samples import Valid
from lightning_rank.functional._feature_axis import as_rows, resolve_feature_axis
from lightning_rank.metrics import LatentSpectrum
from lightning_rank.nn import LinearBottleneck
from lightning_rank.nn._layer_axis import End, features_beside
from lightning_rank.nn._outputs import select_tensor

# What the module computes elsewhere, for a callback or a picture, are no rows of the split.
_STEPS = ("training_step", "validation_step", "test_step")

# Wider ones take longer than anybody expects who has not thought of it: on one core more than a quarter of a minute.
_WIDE = 4096


@dataclass(frozen=True)
class Batch:
    """Where the rows of a batch belong, and which of them count.

    Attributes:
        split: ``"validate"``, ``"test"``, ``"train"`` or ``"sanity"``.
        loader: Number of the dataloader, if the split has several.
        valid: Which samples are the process's own, as :func:`valid_samples` says.
        mask: Non-zero where a position counts; ``None`` if all do.
    """

    split: str
    loader: int | None = None
    valid: Valid | None = None
    mask: Tensor | None = None


class LayerTap:
    """Hook on one layer; takes in rows while it is active.

    It stays registered for the whole stage, so that a module compiled after it was set keeps it, and does all its work
    outside compiled code. Only what the layer computes in ``training_step``, ``validation_step`` and ``test_step``
    counts, and neither what gradient checkpointing computes again in the backward pass nor what runs under a transform
    of ``torch.func``, where the rows cannot be read. A copy or a pickle of the hooked module gets a tap that does
    nothing.

    Args:
        layer: Name of the layer.
        end: Whether its output or its input is read.
        output: Which tensor is meant if there are several.
        feature_axis: Axis of the features; ``None`` for that of the layer.
        max_rows: At most so many rows of a batch are taken in; ``None`` for all.
        n_examples: How many samples are kept as they came, for which the device is waited for.

    Attributes:
        active: Whether rows are taken in.
        batch: What comes now.
        spectra: What came, by split and dataloader.
        examples: The first finite samples of each.
        axis: Feature axis of the last batch.
    """

    def __init__(
        self,
        layer: str = "",
        end: End = "output",
        output: Any = None,
        feature_axis: int | None = None,
        max_rows: int | None = None,
        n_examples: int = 0,
    ) -> None:
        self.layer, self.output, self.feature_axis, self.max_rows = layer, output, feature_axis, max_rows
        self.n_examples = n_examples
        self.end: End = end
        self.active = False  # all that compiled code looks at
        self.batch = Batch("")
        self.spectra: dict[tuple[str, int | None], LatentSpectrum] = {}
        self.examples: dict[tuple[str, int | None], list[Tensor]] = {}
        self.axis = -1
        self._axes: dict[int, int] = {}  # by number of axes
        self._warned_wide = False
        self._noted: list[Tensor] | None = None
        self._module: Callable[[], nn.Module | None] = lambda: None
        self._root: nn.Module | None = None
        self._handle: Any = None

    def __reduce__(self) -> tuple[type[LayerTap], tuple[()]]:
        return LayerTap, ()

    def set(self, root: nn.Module, module: nn.Module) -> None:
        """Put the hook on a layer of the LightningModule ``root``."""
        self._root, self._module = root, weakref.ref(module)
        self._beside = features_beside(root, getattr(module, "_orig_mod", module), self.end)
        if self.end == "input":
            self._handle = module.register_forward_pre_hook(self._given, with_kwargs=True)
        else:
            self._handle = module.register_forward_hook(self._returned)

    @property
    def module(self) -> nn.Module | None:
        """The layer that has the hook, or had it last."""
        return self._module()

    def remove(self) -> None:
        """Take the hook off the layer."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._root, self.active = None, None, False

    def clear(self, split: str) -> None:
        """Forget what came of a split."""
        self.spectra = {key: spectrum for key, spectrum in self.spectra.items() if key[0] != split}
        self.examples = {key: samples for key, samples in self.examples.items() if key[0] != split}

    @contextmanager
    def noting(self) -> Iterator[list[Tensor]]:
        """Meanwhile note what comes first, whoever calls the layer, instead of taking rows in."""
        active, self.active, self._noted = self.active, True, []
        try:
            yield self._noted
        finally:
            self.active, self._noted = active, None

    def weight(self) -> Tensor | None:
        """The composed matrix if the layer is a linear bottleneck that has one and shows it, else ``None``.

        To be called on every process: under FSDP2 it is gathered. FSDP1 leaves pieces that cannot be composed.
        """
        layer = getattr(self.module, "_orig_mod", self.module)  # of a compiled layer, the layer
        if not isinstance(layer, LinearBottleneck) or layer.depth == 0 or any(p.ndim != 2 for p in layer.parameters()):
            return None
        weight = layer.weight.detach()
        gather = getattr(weight, "full_tensor", None)
        return weight if gather is None else gather()

    def _returned(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.active:
            self._take(output)  # pyright: ignore[reportAttributeAccessIssue]

    def _given(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.active:
            given = args[0] if len(args) == 1 and not kwargs else dict(enumerate(args)) | kwargs
            self._take(given)  # pyright: ignore[reportAttributeAccessIssue]

    @torch.compiler.disable
    def _take(self, seen: Any) -> None:
        if self._noted is not None:
            self._noted += [] if self._noted else [select_tensor(seen, self.output, self._where).detach().clone()]
            return
        recomputed = torch._C._current_graph_task_id() != -1  # in a backward pass
        transformed = torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
        if recomputed or transformed or getattr(self._root, "_current_fx_name", _STEPS[0]) not in _STEPS:
            return
        latents = select_tensor(seen, self.output, self._where)
        if not latents.is_floating_point():
            raise TypeError(f"{self._where}: expected a real floating-point tensor, got {latents.dtype}")
        samples, rows, mask = self._nested(latents) if latents.is_nested else self._dense(latents)
        key = (self.batch.split, self.batch.loader)
        spectrum = self.spectra.get(key)
        if spectrum is None:
            self._warn_if_wide(rows.shape[-1])
            # Fresh each time: a state made in inference mode cannot be used outside.
            spectrum = LatentSpectrum(rows.shape[-1], max_rows=self.max_rows).to(home_of_spectra(rows.device))
            self.spectra[key] = spectrum
        if rows.shape[-1] != spectrum.dim:
            raise ValueError(
                f"{self._where}: expected {spectrum.dim} features, as there were before in this epoch, got shape "
                f"{tuple(samples[0].shape) if latents.is_nested else tuple(latents.shape)}; every call of the layer "
                "counts, and of one that is called with several widths no spectrum can be made: name another"
            )
        spectrum.update(rows, mask)
        first = self.examples.setdefault(key, [])
        finite = (sample.detach().clone() for sample in samples if sample.isfinite().all())
        first += islice(finite, self.n_examples - len(first))

    def _warn_if_wide(self, dim: int) -> None:
        if dim > _WIDE and not self._warned_wide:
            self._warned_wide = True
            rank_zero_warn(
                f"{self._where} has {dim} features, so that its spectrum takes {dim * dim * 8 / 1e9:.1f} GB and, each "
                "time, minutes: the first grows with the square of their number, the second with its cube. If that is "
                "too much, name a narrower layer, or observe what this one is given, with at='input'"
            )

    def _dense(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Samples that count, their rows, and which of them do."""
        if latents.ndim < 2:
            raise ValueError(f"{self._where}: expected a batch (B, dim) or more axes, got shape {tuple(latents.shape)}")
        axis = self._axes.get(latents.ndim)
        if axis is None:
            try:
                axis = resolve_feature_axis(latents.shape, self.feature_axis, beside=self._beside)
            except ValueError as error:
                raise ValueError(f"{self._where}: {error}") from None
        # It stays: a sequence that happens to be as long as it is wide must not end a training that has begun.
        self.axis = self._axes[latents.ndim] = axis
        samples = latents[: self._valid(len(latents))]
        rows = as_rows(samples, axis)
        mask = self.batch.mask
        if mask is None:
            return samples, rows, None
        positions = latents.movedim(axis, -1).shape[:-1]
        if mask.ndim == 0 or mask.shape != positions[: mask.ndim]:
            raise ValueError(
                f"mask: expected shape {tuple(positions)}, the positions of {self._where} with shape "
                f"{tuple(latents.shape)}, or its first axes, got {tuple(mask.shape)}; every call of the layer in a "
                "step counts, so move those that should not (generate(), for example) into a hook such as "
                "on_validation_batch_end"
            )
        kept = mask.bool().reshape(*mask.shape, *[1] * (len(positions) - mask.ndim)).expand(positions)[: len(samples)]
        return samples, rows, kept.reshape(-1)

    def _nested(self, latents: Tensor) -> tuple[list[Tensor], Tensor, None]:
        """The same of a nested tensor, the padding of which is gone already."""
        samples = list(latents.unbind())
        self.axis = samples[0].ndim
        samples = samples[: self._valid(len(samples))]
        rows = [sample.reshape(-1, sample.shape[-1]) for sample in samples]
        mask = self.batch.mask
        if mask is not None and (mask.ndim > 2 or len(mask) < len(rows) or mask[0].numel() < max(map(len, rows)) > 1):
            raise ValueError(
                f"mask: expected shape (B, T) or (B,) where {self._where} has nested tensors, got {tuple(mask.shape)}"
            )
        if mask is not None:
            # Of a sequence without its padding, the first positions.
            kept = mask.bool()
            parts = [kept[i].expand(len(row)) if kept.ndim == 1 else kept[i] for i, row in enumerate(rows)]
            rows = [row[part[: len(row)].to(row.device)] for part, row in zip(parts, rows, strict=True)]
        return samples, torch.cat(rows) if rows else latents.unbind()[0][:0], None

    def _valid(self, n: int) -> int:
        batch, valid = self.batch.valid or (n, n)
        return valid if batch in (None, n) else n

    @property
    def _where(self) -> str:
        return f"{'input of ' * (self.end == 'input')}layer={self.layer!r}"


def home_of_spectra(device: torch.device) -> torch.device:
    """Where spectra of latents on a device are kept: there, but for MPS, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device

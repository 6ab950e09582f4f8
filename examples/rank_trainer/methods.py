"""What is compared: a method is a value, so that one of your own is one, too."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule

from lightning_rank import DepthScaledLR, attach_linear_bottleneck


@dataclass(frozen=True)
class Method:
    """How a run is built and trained.

    Attributes:
        name: Of its runs, their directories and their rows: another method has another name.
        attach: Called with the autoencoder and ``after``, ``dim``, ``depth``, and ``gain`` if it takes one. What it
            returns has a ``linear_bottleneck``, as :func:`~lightning_rank.attach_linear_bottleneck` leaves one, with
            depth 0 an identity: there the rank is read.
        callbacks: Each is called for a fresh one, run by run.
        takes_depth: It has a run for each depth above 0, else one, of depth 0.
        takes_gain: It has a run for each gain.
        options: What the autoencoder is made with, besides what all are: with a ``dim``, latents of that width.
    """

    name: str
    attach: Callable[..., LightningModule] = attach_linear_bottleneck
    callbacks: Sequence[Callable[[], Callback]] = ()
    takes_depth: bool = True
    takes_gain: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


#: No linear layers; those of Jing et al. 2020; and orthogonal ones of a gain, at the learning rate over depth.
METHODS = {
    method.name: method
    for method in (
        Method("plain", takes_depth=False),
        Method("irmae", partial(attach_linear_bottleneck, gain=1.0, init="default")),
        Method("ours", callbacks=[DepthScaledLR], takes_gain=True),
    )
}


def by_name(methods: Iterable[Method | str]) -> dict[str, Method]:
    """The methods, in their order; of those in :data:`METHODS` the names will do.

    Raises:
        ValueError: A name is unknown, or two methods have the same.
    """
    found: dict[str, Method] = {}
    for given in methods:
        if isinstance(given, str) and given not in METHODS:
            raise ValueError(f"methods: expected some of {tuple(METHODS)} or a Method, got {given!r}")
        method = METHODS[given] if isinstance(given, str) else given
        if found.setdefault(method.name, method) is not method:
            raise ValueError(f"methods: expected a name for each, got two of {method.name!r}")
    return found

"""The mixin for modules that are written with a linear bottleneck."""

from torch import nn

from lightning_rank.insertion.attach import insert
from lightning_rank.nn._outputs import Output
from lightning_rank.nn.linear_bottleneck import Init, LinearBottleneck


class LinearBottleneckMixin:
    """Gives a module a linear bottleneck, added in its ``__init__``.

    List it before the module class; it inherits from none, so that it serves ``lightning``, ``pytorch_lightning``
    and plain torch alike. Since the bottleneck is built by ``__init__``, ``load_from_checkpoint`` works.

    Example:
        >>> class Autoencoder(LinearBottleneckMixin, nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.encoder, self.decoder = nn.Linear(64, 16), nn.Linear(16, 64)
        ...         self.add_linear_bottleneck(dim=16, depth=4, after="encoder")
        ...
        ...     def forward(self, x):
        ...         return self.decoder(self.encoder(x))
        >>> Autoencoder().encoder.linear_bottleneck
        LinearBottleneck(
          dim=16, depth=4, gain=0.1, init='orthogonal', feature_axis=None
          ...
    """

    linear_bottleneck: LinearBottleneck

    def add_linear_bottleneck(
        self,
        *,
        dim: int,
        depth: int = 4,
        gain: float = 0.1,
        init: Init = "orthogonal",
        feature_axis: int | None = None,
        after: str | None = None,
        before: str | None = None,
        output: Output | None = None,
        allow_missing: bool = False,
    ) -> None:
        """Add a bottleneck, as :func:`~lightning_rank.attach_linear_bottleneck` does.

        Args:
            dim: Width of the latents.
            depth: Number of layers; 0 is the identity.
            gain: Singular value of the whole product at initialization.
            init: ``"orthogonal"``, or ``"default"`` for that of ``nn.Linear``.
            feature_axis: Axis of the latents that holds the features; ``None`` looks at the layers beside.
            after: Name of the submodule whose output passes through the bottleneck, its child from then on, ``forward``
                being left as it is; dots lead to a child's child.
            before: Name of the submodule whose input does, instead of ``after``. With neither, the bottleneck is
                ``self.linear_bottleneck``, and ``forward`` calls ``self.linear_bottleneck(latents)`` itself.
            output: Which tensor is meant, if that submodule returns, or is given, several.
            allow_missing: Whether a ``state_dict`` without the bottleneck's weights may load under ``strict=True``.

        Raises:
            TypeError: ``self`` is not an ``nn.Module``; and as :func:`~lightning_rank.attach_linear_bottleneck`.
            ValueError: As :func:`~lightning_rank.attach_linear_bottleneck`.
        """
        if not isinstance(self, nn.Module):
            raise TypeError(f"{type(self).__name__}: expected LinearBottleneckMixin to be mixed into an nn.Module")
        options = {"gain": gain, "init": init, "feature_axis": feature_axis}
        insert(self, after, before, dim, depth, output, allow_missing, **options)

"""Which axis the layers beside a tensor take for its features."""

from collections.abc import Iterator
from typing import Literal

from torch import nn
from torch.nn.modules import activation, batchnorm, conv, dropout, instancenorm, padding, pooling, rnn, upsampling

from lightning_rank.functional._feature_axis import LayerFeatures
from lightning_rank.nn.linear_bottleneck import LinearBottleneck
from lightning_rank.nn.truncated_bottleneck import TruncatedBottleneck

End = Literal["input", "output"]

_NORMS = batchnorm._NormBase | instancenorm._InstanceNorm
_LAST = nn.LayerNorm | nn.RMSNorm
_BOTTLENECKS = LinearBottleneck | TruncatedBottleneck
_KNOWN = _BOTTLENECKS | conv._ConvNd | _NORMS | nn.GroupNorm | nn.Linear | _LAST | nn.Embedding | rnn.RNNBase
# They leave the number and the place of the features as they are.
_SAME_FEATURES = {module.__name__ for module in (activation, dropout)}
_SAME_CHANNELS = {module.__name__ for module in (pooling, upsampling, padding)}


def layer_features(module: nn.Module, end: End = "output") -> LayerFeatures | None:
    """What the last layer in ``module`` says of the output, or the first one of the input.

    Activations, dropout and pooling are passed over. Only of an ``nn.Sequential`` it is known in which order its layers
    are called; of another module the layer that was added last (first) tells how many features there are, but not on
    which axis.

    Args:
        module: A layer or a module that holds some.
        end: ``"output"`` or ``"input"``.

    Returns:
        ``None`` if there is no layer that says anything.

    Example:
        >>> layer_features(nn.Sequential(nn.Conv1d(1, 8, 3), nn.ReLU()))
        LayerFeatures(axis=1, dim=8, ndim=3, usual=None, covered=False)
        >>> layer_features(nn.Linear(4, 2), "input")
        LayerFeatures(axis=-1, dim=4, ndim=None, usual=None, covered=False)
    """
    pooled, unknown = None, False
    for leaf, in_order in _leaves(module, end):
        if isinstance(leaf, _KNOWN) and not _passes(leaf):
            found = _features(leaf, end)
            if unknown and in_order and found.axis == 1:  # it may have moved the channels of a convolution
                return LayerFeatures(axis=None)
            if unknown:
                return LayerFeatures(axis=None, dim=found.dim, covered=True)
            return found if in_order else found._replace(axis=None, usual=found.axis)
        if type(leaf).__module__ in _SAME_CHANNELS:
            pooled = LayerFeatures(axis=1)
        elif not _passes(leaf):
            unknown = True
    return None if unknown else pooled


def features_beside(root: nn.Module, layer: nn.Module, end: End = "output") -> LayerFeatures | None:
    """The same of a layer inside ``root``; where the layer itself does not say, the steps in front of it do.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU())
        >>> features_beside(net, net[1])
        LayerFeatures(axis=1, dim=8, ndim=4, usual=None, covered=False)
    """
    found = layer_features(layer, end)
    if found is not None or not (end == "input" or all(_passes(leaf) for leaf, _ in _leaves(layer, end))):
        return found
    names = [name for name, module in root.named_modules() if module is layer]
    parent, _, step = names[0].rpartition(".") if names else ("", "", "")
    while step:
        holder = root.get_submodule(parent)
        if type(holder).forward is not nn.Sequential.forward:
            break
        in_front = list(holder._modules)[: list(holder._modules).index(step)]
        if in_front:
            return layer_features(nn.Sequential(*(holder.get_submodule(name) for name in in_front)))
        parent, _, step = parent.rpartition(".")
    return LayerFeatures(axis=None)  # it may be behind anything


def _passes(leaf: nn.Module) -> bool:
    if isinstance(leaf, _LAST):
        return len(leaf.normalized_shape) > 1  # of all axes together, whichever has the features
    return (type(leaf).__module__ in _SAME_FEATURES or type(leaf) is nn.Identity) and type(leaf) is not nn.GLU


def _leaves(module: nn.Module, end: End, in_order: bool = True) -> Iterator[tuple[nn.Module, bool]]:
    """The layers in ``module``, each with whether it is known that they are called in this order."""
    children = list(module.children())
    if isinstance(module, _KNOWN) or not children:
        # A module without steps is no layer either.
        if not isinstance(module, nn.Sequential):
            yield module, in_order
        return
    in_order &= type(module).forward is nn.Sequential.forward or hasattr(module, "_orig_mod")
    for child in reversed(children) if end == "output" else children:
        yield from _leaves(child, end, in_order)


def _features(layer: nn.Module, end: End) -> LayerFeatures:
    into = end == "input"
    if isinstance(layer, _BOTTLENECKS):
        # As it finds the axis itself: it knows its width, whatever the layer beside was taken to have.
        code = isinstance(layer, TruncatedBottleneck) and layer.decode is None and not into
        said = layer.beside if layer.feature_axis is None else LayerFeatures(layer.feature_axis)
        width = layer.rank if code else layer.dim
        return (said or LayerFeatures(None))._replace(dim=width, usual=None, covered=False)
    if isinstance(layer, conv._ConvNd):
        return LayerFeatures(1, layer.in_channels if into else layer.out_channels, len(layer.kernel_size) + 2)
    if isinstance(layer, _NORMS):
        return LayerFeatures(1, layer.num_features)
    if isinstance(layer, nn.GroupNorm):
        return LayerFeatures(1 if _inherits(layer, nn.GroupNorm) else None, layer.num_channels)
    if isinstance(layer, nn.Linear):
        axis = -1 if _inherits(layer, nn.Linear) else None
        return LayerFeatures(axis, layer.in_features if into else layer.out_features)
    if isinstance(layer, _LAST):
        kind = nn.LayerNorm if isinstance(layer, nn.LayerNorm) else nn.RMSNorm
        return LayerFeatures(-1 if _inherits(layer, kind) else None, layer.normalized_shape[-1])
    if isinstance(layer, nn.Embedding):
        return LayerFeatures(-1, layer.embedding_dim)
    assert isinstance(layer, rnn.RNNBase)
    wide = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
    return LayerFeatures(-1, layer.input_size if into else wide)


def _inherits(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether it does what that kind does: a norm of images may derive from one of tokens."""
    return type(layer).forward is kind.forward

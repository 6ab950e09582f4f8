"""Hooks and ``torch.compile``, whose code does not look whether a module has a hook unless it is told to."""

from typing import Any
from weakref import WeakSet

import torch._dynamo.config
import torch._dynamo.utils

_owners: WeakSet[Any] = WeakSet()
_skipped: list[bool] = []


def compiled_frames() -> int:
    """How much the process has compiled since it last forgot all; nothing if it never did."""
    return torch._dynamo.utils.curr_frame


def look_for_hooks(owner: Any) -> None:
    """Have code that is compiled from now on look for hooks, since equal modules share it whether they have one or not.

    Equal modules are the blocks of a transformer that are compiled one by one, or because of a graph break.
    """
    _owners.add(owner)
    if not _skipped and hasattr(torch._dynamo.config, "skip_nnmodule_hook_guards"):  # it is no public API
        _skipped.append(torch._dynamo.config.skip_nnmodule_hook_guards)
        torch._dynamo.config.skip_nnmodule_hook_guards = False


def look_no_more(owner: Any) -> None:
    """Leave it as it was, once no owner has hooks any more."""
    _owners.discard(owner)
    if not _owners and _skipped:
        torch._dynamo.config.skip_nnmodule_hook_guards = _skipped.pop()

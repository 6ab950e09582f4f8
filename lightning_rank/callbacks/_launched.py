"""What a callback found out in processes that a strategy launched, brought back to the process that launched them."""

import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer


class WayBack:
    """A file that the launched process leaves and the launching one fetches.

    ``ddp_spawn`` and its like train in processes that they make, and bring back weights and ``callback_metrics``, but
    no attributes of callbacks. A callback makes one of these in its constructor, and copies carry it along.
    """

    def __init__(self) -> None:
        self._home = os.getpid()
        self._path = Path(tempfile.gettempdir(), f"lightning_rank_{uuid.uuid4().hex}.pt")

    def __deepcopy__(self, memo: Any) -> "WayBack":
        return WayBack()

    def leave(self, trainer: Trainer, state: Any) -> None:
        """Leave it, if this is the main one of processes that were launched so."""
        launcher = type(trainer.strategy.launcher)
        launched = any(base.__name__ == "_MultiProcessingLauncher" for base in launcher.__mro__)
        if launched and trainer.is_global_zero and os.getpid() != self._home:
            partial = self._path.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(self._path)

    def fetch(self) -> Any:
        """What was left since; ``None`` if nothing was."""
        if os.getpid() != self._home or not self._path.exists():
            return None
        state = torch.load(self._path, weights_only=True)
        self._path.unlink()
        return state

"""The curve of a monitor: through checkpoints, from fit to fit, and home from launched processes."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_rank.callbacks._history import Measure, RankHistory, Row
from lightning_rank.callbacks._keys import Keys
from lightning_rank.callbacks._launched import WayBack


class RankCurve:
    """What was measured last, and the history of the last fit.

    Args:
        layers: Names of the layers.
        keys: What the numbers are called.

    Attributes:
        measured: Splits that were measured in this fit, not in the one that it goes on from.
    """

    def __init__(self, layers: Sequence[str], keys: Keys) -> None:
        self._layers, self._keys = layers, keys
        self._history = RankHistory()
        self._restored: RankHistory | None = None
        self._spectra: dict[str, Tensor] = {}
        self._weight_spectra: dict[str, Tensor] = {}
        self._way_back = WayBack()
        self.measured: set[str] = set()

    @property
    def history(self) -> RankHistory:
        """Of the last fit."""
        self._fetch()
        return self._history

    @property
    def spectra(self) -> dict[str, Tensor]:
        """The last by layer."""
        self._fetch()
        return self._spectra

    @property
    def weight_spectra(self) -> dict[str, Tensor]:
        """The last of the composed matrix by layer."""
        self._fetch()
        return self._weight_spectra

    def rows(self) -> list[dict[str, float]]:
        """The history as it is logged."""
        return [
            {"epoch": row.epoch, "step": row.step} | {self._keys.key(of): value for of, value in row.values.items()}
            for row in self.history.rows
        ]

    def set_up(self, trainer: Trainer, stage: str) -> None:
        """Before a stage: empty the history for a ``fit`` from the first step, not for one that goes on."""
        self._fetch()
        self._restored = None
        if stage == "fit" and trainer.global_step == 0:
            self._history = RankHistory()

    def start(self) -> None:
        """When training starts: take over the curve of the checkpoint, if one was loaded."""
        if self._restored is not None:
            self._history, self._restored = self._restored, None
        self.measured = set()

    def show(self, spectra: Mapping[Measure, Tensor]) -> None:
        """Take in the spectra that were measured last."""
        for of, spectrum in spectra.items():
            last = self._weight_spectra if of.name else self._spectra
            last[self._keys.place(of)] = spectrum

    def append(self, row: Row, spectra: Mapping[Measure, Tensor]) -> None:
        """Add to the history."""
        self._history.append(row, spectra)
        self.measured |= {of.split for of in row.values}

    def state_dict(self) -> dict[str, Any]:
        """The history, thin."""
        return (self._restored or self._history).state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Remember a history, which may be there to be trained or only to be validated; leave out one of others."""
        try:
            self._restored = RankHistory.from_state_dict(state_dict, self._layers)
        except ValueError as error:
            rank_zero_warn(f"EffectiveRankMonitor: the curve in the checkpoint is left out: {error}")

    def leave(self, trainer: Trainer) -> None:
        """Send all home, if this process was launched and ends now."""
        # The curve of the fit, not that of a checkpoint that was loaded to be validated.
        self._way_back.leave(trainer, (self._history.state_dict(), self._spectra, self._weight_spectra))

    def _fetch(self) -> None:
        state = self._way_back.fetch()
        if state is not None:
            history, self._spectra, self._weight_spectra = state
            self._history = RankHistory.from_state_dict(history, self._layers)

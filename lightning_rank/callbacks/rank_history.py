"""The rank curve and its spectra, across checkpoints and to the loggers."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_rank import functional
from lightning_rank.callbacks import spectrum_report


class RankHistory:
    """What was measured in each epoch of ``fit``.

    Attributes:
        rows: A row for each logged epoch: ``epoch``, ``step`` and the logged keys.
        spectra: By key prefix, such as ``rank/`` and ``rank/weight_``, a row for each spectrum: ``epoch``, ``step`` and
            ``singular_values``.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.spectra: dict[str, list[dict[str, Any]]] = {}
        self._restored: dict[str, Any] | None = None
        self._sent: tuple[float, float] | None = None

    def append(self, epoch: int, step: int, row: dict[str, float], spectra: dict[str, Tensor]) -> None:
        """Add an epoch."""
        now: dict[str, Any] = {"epoch": epoch, "step": step}
        self.rows.append(now | row)
        for prefix, singular_values in spectra.items():
            self.spectra.setdefault(prefix, []).append(now | {"singular_values": singular_values})

    def state_dict(self) -> dict[str, Any]:
        """Plain Python and tensors, as checkpoints want them."""
        rows, spectra = (self.rows, self.spectra) if self._restored is None else self._restored.values()
        return {
            "rows": [dict(row) for row in rows],
            "spectra": {prefix: [dict(row) for row in rows] for prefix, rows in spectra.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the curve of a checkpoint, which may be there to be trained or only to be validated."""
        self._restored = {"rows": state_dict["rows"], "spectra": state_dict["spectra"]}

    def adopt_restored(self) -> None:
        """Go on from the curve of the checkpoint, if one was loaded."""
        if self._restored is not None:
            self.rows, self.spectra = self._restored.values()
        self.forget_restored()

    def forget_restored(self) -> None:
        """Go on from the curve that there is."""
        self._restored = None

    def send(self, trainer: Trainer, titles: dict[str, str], directory: Path | None, variance_rtol: float) -> None:
        """Send pictures of the spectra to loggers that take some, and write the others a file, unless just done.

        Args:
            trainer: Whose loggers.
            titles: What the spectra of each prefix are of.
            directory: Where files go; ``None`` for none.
            variance_rtol: Threshold of the numerical rank.
        """
        now = (self.rows[-1]["epoch"], self.rows[-1]["step"]) if self.rows else None
        if now == self._sent or not trainer.is_global_zero or not trainer.loggers:
            return
        self._sent = now
        for prefix, rows in self.spectra.items():
            spectra, epochs = [row["singular_values"] for row in rows], [row["epoch"] for row in rows]
            rank = int(functional.numerical_rank(spectra[-1], variance_rtol=variance_rtol))
            spectrum_report.send_pictures(trainer, prefix, titles[prefix], spectra, epochs, rank)
            if directory is not None:
                path = directory / f"{titles[prefix].replace(' ', '_')}.csv"
                spectrum_report.write_spectra(path, spectra, epochs, [row["step"] for row in rows])

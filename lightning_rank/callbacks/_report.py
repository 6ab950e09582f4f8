"""The spectra of a fit on their way to loggers and files."""

import importlib.util
from collections.abc import Mapping, Sequence

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_rank import functional
from lightning_rank.callbacks._due import Due, Every
from lightning_rank.callbacks._figures import spectrum_figure, waterfall_figure
from lightning_rank.callbacks._files import Spectrum, SpectrumFiles, files_directory, writes_files
from lightning_rank.callbacks._history import Measure, RankHistory
from lightning_rank.callbacks._keys import Keys
from lightning_rank.callbacks._loggers import send_figure, send_histogram, some_take_pictures


def send_histograms(trainer: Trainer, spectra: Mapping[Measure, Tensor], keys: Keys, step: int) -> None:
    """Send each spectrum as a histogram."""
    for of, spectrum in spectra.items():
        send_histogram(trainer, keys.key(of._replace(name=f"{of.name}log10_singular_values")), spectrum, step)


class SpectrumReport:
    """Pictures of the last and of all spectra for loggers that take some, files of all spectra beside the logs.

    To be made on every process, for they agree on the directory.

    Args:
        trainer: Whose loggers.
        every: When pictures are due, as :class:`Due` takes it; ``None`` for neither pictures nor files.
        last_step: Of the run that is resumed; ``None`` if none is.
        keys: What the spectra are called.
        others: The keys of the other monitors, which leave files in the same directory.
        variance_rtol: Threshold of the numerical rank that is drawn.
    """

    def __init__(
        self,
        trainer: Trainer,
        every: Every,
        last_step: int | None,
        keys: Keys,
        others: Sequence[Keys],
        variance_rtol: float,
    ) -> None:
        directory = files_directory(trainer, "rank_spectra")
        self._due = Due(every)
        self._keys, self._others, self._variance_rtol = keys, others, variance_rtol
        self._drawn = 0
        wanted = every is not None and writes_files(trainer)
        self._draws = wanted and some_take_pictures(trainer) and importlib.util.find_spec("matplotlib") is not None
        self._files = SpectrumFiles(directory, last_step) if wanted and trainer.loggers else None

    def add(self, trainer: Trainer, history: RankHistory, spectra: Mapping[Measure, Tensor], step: int) -> None:
        """Take in the spectra that the history has just got."""
        if self._files is not None:
            for of in spectra:
                self._files.add(self._keys.file(of, self._others), history.spectra[of])
        if (self._draws or self._files) and self._due.now():
            self._send(trainer, history, step)

    def flush(self) -> None:
        """Write the rows that wait for it."""
        if self._files is not None:
            self._files.flush()

    def finish(self, trainer: Trainer, history: RankHistory) -> None:
        """Send what has not been sent."""
        if history.rows and len(history.rows) > self._drawn:
            self._send(trainer, history, history.rows[-1].step)

    def _send(self, trainer: Trainer, history: RankHistory, step: int) -> None:
        with self._due.drawing():
            self.flush()
            if self._draws:
                for of, spectra in history.spectra.items():
                    self._draw(trainer, of, spectra, step)
            self._drawn = len(history.rows)

    def _draw(self, trainer: Trainer, of: Measure, spectra: list[Spectrum], step: int) -> None:
        last = spectra[-1]
        rank = int(functional.numerical_rank(last.values, variance_rtol=self._variance_rtol))
        epochs, steps = [row.epoch for row in spectra], [row.step for row in spectra]
        unit, places = ("epoch", epochs) if len(set(epochs)) == len(epochs) else ("step", steps)
        title = self._keys.title(of)
        figure = spectrum_figure(last.values, f"{title}, {unit} {places[-1]}", rank)
        send_figure(trainer, self._keys.key(of._replace(name=f"{of.name}spectrum")), figure, step)
        figure = waterfall_figure([row.values for row in spectra], places, unit, title)
        send_figure(trainer, self._keys.key(of._replace(name=f"{of.name}waterfall")), figure, step)

"""Files beside the checkpoints, wherever fsspec can write."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_rank.callbacks._loggers import as_pillow


class Spectrum(NamedTuple):
    """Principal deviations of latents, or singular values of a composed matrix, and when they were measured.

    Attributes:
        epoch: When.
        step: As :func:`logger_step` counts.
        values: Descending, shape ``(dim,)``.
    """

    epoch: int
    step: int
    values: Tensor


def files_directory(trainer: Trainer, name: str) -> str:
    """A directory of that name beside the checkpoints, or with the logs.

    To be called on every process, for Lightning agrees with the others on the directory.
    """
    beside = getattr(trainer.checkpoint_callback, "dirpath", None) or trainer.log_dir or trainer.default_root_dir
    return f"{str(beside).rstrip('/')}/{name}"


def writes_files(trainer: Trainer) -> bool:
    """Whether this process may leave files: the main one, and not in a ``fast_dev_run``."""
    return trainer.is_global_zero and not trainer.fast_dev_run  # pyright: ignore[reportAttributeAccessIssue]


def write_picture(path: str, picture: Tensor) -> None:
    """Write a picture, uint8 of shape ``(C, H, W)``; its directory is made."""
    buffer = io.BytesIO()
    as_pillow(picture).save(buffer, "PNG")
    _write(path, buffer.getvalue())


class SpectrumFiles:
    """A CSV file for each kind of spectrum, a row each: epoch, step, and the values in descending order.

    Rows are appended as they come; where the store cannot append, when :meth:`flush` is called.

    Args:
        directory: Of the files.
        last_step: Of the run that is resumed, whose rows up to there stay; ``None`` begins files anew.
    """

    def __init__(self, directory: str, last_step: int | None) -> None:
        self._directory = directory
        self._last_step = last_step
        self._waiting: dict[str, list[Spectrum]] = {}
        self._begun: set[str] = set()

    def add(self, stem: str, spectra: Sequence[Spectrum]) -> None:
        """Add the last of the spectra so far to the file of that name; to a new file those before it, too."""
        path = f"{self._directory}/{stem}.csv"
        waiting = self._waiting.setdefault(path, [])
        if path not in self._begun:
            self._begun.add(path)
            kept = self._kept(path, len(spectra[-1].values))
            _write(path, kept.encode() if kept else _lines([_header(spectra[-1])]).encode())
            waiting.extend([] if kept else spectra[:-1])
        waiting.append(spectra[-1])
        if _is_local(path):
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        for path, spectra in self._waiting.items():
            if spectra:
                lines = _lines([[row.epoch, row.step, *row.values.tolist()] for row in spectra]).encode()
                if _is_local(path):
                    with get_filesystem(path).open(path, "ab") as file:
                        file.write(lines)  # pyright: ignore[reportArgumentType]
                else:
                    _write(path, _read(path) + lines)
        self._waiting = {}

    def _kept(self, path: str, dim: int) -> str:
        """The header and the rows that the run that is resumed had written by then."""
        if self._last_step is None or not get_filesystem(path).exists(path):
            return ""
        header, *lines = _read(path).decode().splitlines(keepends=True)
        if header.count(",") != dim + 1:
            return ""
        # The last one may have been torn when the run broke.
        whole = [line for line in lines if line.endswith("\n") and line.count(",") == header.count(",")]
        return header + "".join(line for line in whole if int(line.split(",")[1]) <= self._last_step)


def _header(spectrum: Spectrum) -> list[str]:
    return ["epoch", "step", *(f"sigma_{k}" for k in range(1, len(spectrum.values) + 1))]


def _lines(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _is_local(path: str) -> bool:
    protocol = get_filesystem(path).protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def _read(path: str) -> bytes:
    return get_filesystem(path).cat_file(path)  # pyright: ignore[reportReturnType]


def _write(path: str, data: bytes) -> None:
    system = get_filesystem(path)
    system.makedirs(path.rpartition("/")[0], exist_ok=True)
    system.pipe_file(path, data)

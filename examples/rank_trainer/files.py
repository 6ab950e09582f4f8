"""Files that are there as a whole or not at all, whatever happens while they are written, and folders for them."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to, which takes the place of ``path`` at the end; each of several writers has its own."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file, in place of the old one only when it is complete."""
    with replacing(path) as partial:
        partial.write_text(text)


def make_writable(folder: Path) -> None:
    """Make a folder, if there is none, and see that files can be made in it.

    Raises:
        OSError: They cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass

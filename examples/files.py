"""Files that are there as a whole or not at all, whatever happens while they are written."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text file, in place of the old one only when it is complete."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path


class NotWritten(OSError):
    """A file that could not be written; what was there before is untouched.

    >>> made.save(folder / "nowhere" / "cat.regard.safetensors")
    Traceback (most recent call last):
        ...
    regard.record.files.NotWritten: '...cat.regard.safetensors' cannot be written: there is no directory '...nowhere'.
    """


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file under a temporary name beside its place, and move it there once it is on disk.

    An existing file keeps its permissions, a link stays a link. Raises NotWritten.
    """
    try:
        place = Path(os.path.realpath(path))
        why, before = _replaceable(place) if str(path) else ("the path is empty", None)
        if why is None:
            _write(place, data, before)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise NotWritten(f"{str(path)!r} cannot be written: {why}.") from error
    if why is not None:
        raise NotWritten(f"{str(path)!r} cannot be written: {why}.")


def _replaceable(place: Path) -> tuple[str | None, os.stat_result | None]:
    """Why nothing may be written there, and what is known of the file that is there already."""
    try:
        before = place.stat()
    except FileNotFoundError:
        return (None if place.parent.is_dir() else f"there is no directory {str(place.parent)!r}"), None
    if not stat.S_ISREG(before.st_mode):
        return ("it is a directory" if stat.S_ISDIR(before.st_mode) else "it is not a regular file"), before
    return (None if os.access(place, os.W_OK) else "it is read-only"), before


def _write(place: Path, data: bytes, before: os.stat_result | None) -> None:
    hidden = place.parent / f".regard-{secrets.token_hex(8)}"  # short: the name itself may be as long as names can be
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    handle = os.open(hidden, flags, 0o666)  # less the umask
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            hidden.chmod(stat.S_IMODE(before.st_mode))
        hidden.replace(place)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # the name's own way to the disk, where directories can be opened
        directory = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

"""A file is written whole or not at all, and every place where it cannot be is one sentence."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from regard.record import NotWritten
from regard.record.files import write_whole


def not_written(path: str | Path) -> str:
    with pytest.raises(NotWritten) as refused:
        write_whole(path, b"new")
    assert isinstance(refused.value, OSError)
    return str(refused.value)


def test_places_where_nothing_can_be_written(tmp_path: Path) -> None:
    assert not_written(tmp_path / "no" / "x").endswith(f"there is no directory {str(tmp_path / 'no')!r}.")
    assert not_written(tmp_path).endswith("cannot be written: it is a directory.")
    assert not_written("") == "'' cannot be written: the path is empty."
    assert "null" in not_written("a\0b")
    assert "cannot be written: " in not_written(tmp_path / ("x" * 300))
    if Path("/dev/null").is_char_device():
        assert not_written("/dev/null").endswith("it is not a regular file.")
        assert Path("/dev/null").is_char_device()
    assert not list(tmp_path.iterdir())


def test_a_read_only_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "x").chmod(0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: bool(os.stat(path).st_mode & 0o200))  # as for other users than root
    assert not_written(tmp_path / "x").endswith("it is read-only.")
    assert (tmp_path / "x").read_bytes() == b"old"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "x").write_bytes(b"old")
    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), full)
    assert not_written(tmp_path / "x") == f"{str(tmp_path / 'x')!r} cannot be written: No space left on device."
    monkeypatch.undo()
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "x", b"new")
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_permissions_and_links_stay(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "x", b"one")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
    (tmp_path / "x").chmod(0o600)
    (tmp_path / "link").symlink_to("x")
    write_whole(tmp_path / "link", b"two")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "x").read_bytes() == b"two"
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600
    write_whole(tmp_path / ("y" * 255), b"as long as names can be")

"""A file that is appended to, and outlives a full disk and its own removal."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from train.atomic import replacing

HELD = 16 * 2**20
"""Bytes that are held in memory while they cannot be written: some 50,000 lines of a log."""


class AppendedFile:
    """Writes records, each handed to the system before the program goes on, and never ends the program.

    What cannot be written, as on a full disk, is held until it can, up to `HELD` bytes; a file that is removed is
    written again with all that it held.

    Args:
        path: the file, which is made, or gone on with.
        warn: is told when it cannot be written, once, and when it can again.

    Raises OSError where there can be no such file.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path, self._warn = path, warn
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._held = bytearray()
        self._records = 0
        """That are held."""
        self._lost = 0
        self._fails = False

    def cut(self, length: int) -> None:
        """Leave the first `length` bytes."""
        if self.path.is_file():  # and no device
            os.truncate(self._file, length)

    def append(self, record: bytes) -> None:
        """Write `record`, or hold it."""
        if len(self._held) + len(record) > HELD:
            self._lost += 1
        else:
            self._held += record
            self._records += 1
        self._flush()

    def replace(self, content: bytes) -> None:
        """Let the file hold `content` instead. Raises OSError, and the file is as it was."""
        with replacing(self.path) as unfinished:
            unfinished.write_bytes(content)
        self._reopen()

    def close(self) -> None:
        """Close it; says how much is lost, if anything."""
        self._flush()
        if lost := self._records + self._lost:
            self._warn(f"{self.path}: the last {lost} records could not be written")
        os.close(self._file)

    def _flush(self) -> None:
        try:
            if not self._is_at_path():
                self._write_again()
            while self._held:
                # Where the disk is full this may write a part; the next try goes on after it.
                del self._held[: os.write(self._file, self._held)]
        except OSError as error:
            if not self._fails:
                self._warn(f"{self.path}: {error.strerror or error}; what it is to hold stays in memory until it can")
            self._fails = True
            return
        self._records = 0
        if self._fails:
            lost = f", but {self._lost} records are lost" if self._lost else ""
            self._warn(f"{self.path}: can be written again{lost}")
            self._fails, self._lost = False, 0

    def _is_at_path(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file))
        except OSError as error:  # a file system that does not answer for a while has lost nothing
            return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)

    def _write_again(self) -> None:
        """Go on in a new file, or in the one that has taken the place. What was removed can still be read."""
        if self.path.exists():
            self._reopen()
            self._warn(f"{self.path}: was replaced, and is gone on with")
            return
        try:
            former = os.pread(self._file, os.fstat(self._file).st_size, 0)
            self._warn(f"{self.path}: was removed, and is written again")
        except OSError:  # of another machine's disk
            former = b""
            self._warn(f"{self.path}: was removed, and what it held is lost")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.replace(former)

    def _reopen(self) -> None:
        former, self._file = self._file, os.open(self.path, os.O_RDWR | os.O_APPEND)
        os.close(former)

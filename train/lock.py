"""One program at a time writes into a folder, or into a file.

A lock is the system's, on a file: `.lock` in the folder, `.NAME.lock` beside the file. It goes with the process that
holds it, however that ends, and the file says who that is. It is a POSIX record lock and no flock (which is what the
library filelock takes): a flock is shared with forked processes, so that one that reads videos, and hangs, would hold
it after the death of its parent. NFS knows both as record locks, from one machine to the other; there the lock of a
machine that has died goes when the server gives it up, with NFS 4 after some 90 s.
"""

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from train.errors import InputError

PATIENCE = 3.0
"""Seconds to wait for a lock: a process that was killed holds it until the system has cleared it away."""

_UNKNOWN = "another program"
# Record locks do not keep out the process that holds them, and closing any descriptor of a file gives them up: what is
# held here, as (device, inode), by which process (a fork has this table too, but not the locks).
_held: dict[tuple[int, int], int] = {}


class Lock:
    """A lock on `place`, that its holder alone may write to: a folder, which is made, or a file. A context manager.

    Entering it raises InputError where another has the lock, which it names, and where nothing can be written. Where
    the file system knows no locks it says so and goes on without.
    """

    def __init__(self, place: Path, *, is_file: bool = False) -> None:
        self.place = place
        self.path = place.with_name(f".{place.name}.lock") if is_file else place / ".lock"
        self._descriptor: int | None = None
        self._inode = (0, 0)
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def take(self) -> None:
        """Wait for the lock, `PATIENCE` seconds at most."""
        deadline = time.monotonic() + PATIENCE
        while holder := self._try():
            if time.monotonic() > deadline:
                raise InputError(f"{self.place}: is in use by {holder}; wait for its end, or take another place")
            time.sleep(0.05)

    def release(self) -> None:
        """Give it up, with the file, and the folder if that was made for it and is empty. Does nothing without it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if _held.get(self._inode) == os.getpid():  # and not a fork of the holder
            if self._is_at_path(self._inode):
                with contextlib.suppress(OSError):
                    self.path.unlink()  # while it is held: who waits for it sees that it waits for nothing
            del _held[self._inode]
            for folder in self._made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        os.close(descriptor)

    @property
    def is_lost(self) -> bool:
        """Whether its file is there no more, so that another program may lock the place."""
        return self._descriptor is None or not self._is_at_path(self._inode)

    def renew(self) -> None:
        """Take it again after it was lost. Raises as entering it does."""
        self.release()
        self.take()

    def _try(self) -> str | None:
        """Who else has the lock; None if it is this one's now."""
        self._make_folder()
        with contextlib.suppress(OSError):
            if _held.get(_inode(self.path.stat())) == os.getpid():
                return f"this very process, {os.getpid()}"
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # a holder has removed the folder, too
            return _UNKNOWN
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = os.read(descriptor, 1000).decode(errors="replace").strip()
                os.close(descriptor)
                return holder or _UNKNOWN
            print(f"warning: {self.path}: {error.strerror}; no other program is kept out", file=sys.stderr)
        inode = _inode(os.fstat(descriptor))
        if not self._is_at_path(inode):  # its holder has removed it since it was opened
            os.close(descriptor)
            return _UNKNOWN
        self._descriptor, self._inode = descriptor, inode
        _held[inode] = os.getpid()
        with contextlib.suppress(OSError):  # a full disk; whoever is refused is then not told by whom
            os.ftruncate(descriptor, 0)
            since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode())
        return None

    def _make_folder(self) -> None:
        folder = self.path.parent
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            in_the_way = next(place for place in (folder, *folder.parents) if place.is_symlink() or place.exists())
            raise InputError(f"out: {in_the_way} is a file, expected a folder") from error
        except OSError as error:
            raise self._unwritable(error) from error
        self._made += [place for place in missing if place not in self._made]

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"{self.place}: cannot be written to: {error.strerror}; take another place")

    def _is_at_path(self, inode: tuple[int, int]) -> bool:
        try:
            return _inode(self.path.stat()) == inode
        except FileNotFoundError:
            return False
        except OSError as error:  # a file system that does not answer for a while has lost nothing
            return error.errno != errno.ESTALE


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino

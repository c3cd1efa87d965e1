"""The error of reading, and the one that readers keep among themselves."""

import os

from train.errors import InputError


class VideoError(InputError):
    """A video or frame that cannot be read. The message names the file and says why; `path` and `reason` hold both."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(str(path), reason)  # both, so that it survives pickling on its way out of a worker
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class UnsuitedError(Exception):
    """What keeps the file from being read is its reader's, not the file's: another may do better."""

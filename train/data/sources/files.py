"""Video files in folders, found by their names."""

from pathlib import Path

from train.data.sources.text import unicode_form
from train.errors import InputError

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov")
"""The suffixes of video files, in the order in which they are preferred where one clip is there under several."""
STDIN, CAMERA, CAMERAS = "-", "camera", "/dev/video"
"""What is no file: standard input, the first camera, and how the names of cameras' devices begin."""


class VideoFolder:
    """A folder of video files and, if `deep`, of folders of these, listed once: a data set may hold 240,000.

    Raises InputError if there is no such folder.
    """

    def __init__(self, root: Path, deep: bool = True) -> None:
        self.root = root
        self._files: dict[tuple[str, str], Path] = {}
        items = visible(root)
        self._add("", items)
        # Video files are told by their names: asking the file system about each would take longer than all else.
        for folder in (item for item in items if deep and item.suffix.lower() not in VIDEO_SUFFIXES and item.is_dir()):
            self._add(folder.name, visible(folder))

    def _add(self, name: str, files: list[Path]) -> None:
        for file in files:
            suffix = file.suffix.lower()
            if suffix in VIDEO_SUFFIXES:
                place = unicode_form(name), unicode_form(file.stem)
                kept = self._files.setdefault(place, file)
                if VIDEO_SUFFIXES.index(suffix) < VIDEO_SUFFIXES.index(kept.suffix.lower()):
                    self._files[place] = file

    def find(self, folders: tuple[str, ...], stems: tuple[str, ...]) -> Path | None:
        """The first file found under one of these names without suffix, in one of these folders ("": the root)."""
        for stem in stems:
            for folder in folders:
                if (file := self._files.get((unicode_form(folder), unicode_form(stem)))) is not None:
                    return file
        return None


def visible(folder: Path) -> list[Path]:
    """What is in `folder`, sorted, without hidden files. Raises InputError if there is no such folder."""
    try:
        return sorted(item for item in folder.iterdir() if not item.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: {(error.strerror or str(error)).lower()}") from error

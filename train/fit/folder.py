"""The folder of a run: in use by one program alone, and kept whole as long as that lasts."""

from collections.abc import Callable
from pathlib import Path

from train.atomic import write_text
from train.checkpoint import RunCheckpoints
from train.errors import InputError
from train.fields import from_plain
from train.lock import Lock
from train.recipe import Recipe


class RunFolder:
    """`recipe.json` and `checkpoints/` of a run, and the lock on all of its folder; the log keeps itself.

    Only the leading process has to do with the files.
    """

    recipe: Recipe
    """As the run resolved it; to be set before it is written."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.lock = path, Lock(path)
        self.checkpoints = RunCheckpoints(path / "checkpoints", keep)
        self._recipe_path = path / "recipe.json"
        self._fails = False

    def begins(self, resume: bool) -> bool:
        """Whether the run starts from its beginning, and not from a checkpoint. InputError where it may do neither."""
        for remains in self.path.glob("*.unfinished"):  # of a run that was killed; its checkpoints see to themselves
            remains.unlink()
        begins = not self.checkpoints.by_age()
        if not begins and not resume:
            raise InputError(
                f"{self.path}: holds a run already; go on with it by --resume, or take another folder by --out"
            )
        return begins

    def batch_size(self) -> int | None:
        """What the run that is here began with. Raises InputError where no checkpoint is whole."""
        newest = self.checkpoints.newest(lambda warning: None)  # they are said when it is loaded
        return from_plain(Recipe, newest["recipe"], "recipe").optimization.batch_size if newest else None

    def write_recipe(self) -> None:
        """Write `recipe.json`. Raises OSError."""
        write_text(self._recipe_path, self.recipe.to_json() + "\n")

    def restore(self, best: int | None, warn: Callable[[str], None]) -> tuple[bool, bool]:
        """Write again what has been removed, now or, where that cannot be, when this is called the next time.

        `best` is the step whose checkpoint is to be the best one. Returns whether the newest checkpoint and the best
        one are gone for good. Raises InputError where another program has taken the place.
        """
        try:
            if self.lock.is_lost:
                is_gone = not self.path.exists()
                self.lock.renew()
                warn(f"{self.path if is_gone else self.lock.path}: was removed while the run lasts, and is made anew")
            if not self._recipe_path.exists():
                self.write_recipe()
            newest = self.checkpoints.newest_is_gone()
            best_too = best is not None and not self.checkpoints.restore_best(best)
        except InputError as error:
            raise InputError(f"{self.path}: was removed while this run wrote to it, and now {error}") from error
        except OSError as error:
            if not self._fails:
                warn(f"{self.path}: {error.strerror or error}; what was removed is written again when it can be")
            self._fails = True
            return False, False
        self._fails = False
        if newest:
            warn(f"{self.checkpoints.folder}: the checkpoints were removed; another one is written now")
        if best_too:
            warn(f"{self.checkpoints.best}: was removed; the next validation makes another best checkpoint")
        return newest, best_too

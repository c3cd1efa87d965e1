"""What the page of command lines shows of a class: its fields, which are a command's options, and no method."""

from typing import Any

import griffe


class Fields(griffe.Extension):
    """For mkdocstrings: the classes of `train` and `bench` without their methods and properties."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """After a class was read."""
        if cls.path.partition(".")[0] in ("train", "bench"):
            for name, member in list(cls.members.items()):
                if member.is_function or "property" in member.labels:
                    cls.del_member(name)

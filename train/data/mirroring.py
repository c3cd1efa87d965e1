"""What a flip from left to right makes of a class, by the words in its name or by a file that names the pairs."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from train.data.sources.text import numbered_lines, unicode_form
from train.errors import InputError

# The words of class names that a mirror exchanges.
_OPPOSITES = {"left": "right", "leftward": "rightward", "leftwards": "rightwards", "clockwise": "counterclockwise"}
_OPPOSITES |= {right: left for left, right in _OPPOSITES.items()}
_SPELLINGS = dict.fromkeys(("counter-clockwise", "anticlockwise", "anti-clockwise"), "counterclockwise")
# Behind `right` these words make it mean "straight": `pulling it right out`.
_STRAIGHT = re.compile(
    r"(?<![a-z])right[\s_]+(?:about|above|across|after|along|around|at|away|back|before|behind|below|beside|down|here|in|"
    r"inside|into|next|now|off|on|onto|out|outside|over|past|there|through|under|up)(?![a-z])"
)
_DIRECTION = re.compile(rf"(?<![a-z])({'|'.join([*_SPELLINGS, *_OPPOSITES])})(?![a-z])")
_NEXT_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])")  # in `SwipeLeft`


def mirrored_labels(
    class_names: Sequence[str], pairs: Mapping[int, int | None] | None = None
) -> tuple[int | None, ...]:
    """What a horizontal flip makes of each class.

    A class whose name has left and right (or clockwise and counterclockwise) in it becomes the one whose name has them
    exchanged; capitals begin words, as in `SwipeLeft`, and mean nothing else. Where there is no such class, or where
    names that differ in capitals alone leave open which, the entry is None: clips of it must not be flipped. Every
    other class stays what it is, also one whose only direction is none: `pulling it right out`. `pairs` hold for their
    classes instead, and a class whose partner by its name is among them is not flipped.
    """

    def spelled_alike(match: re.Match[str]) -> str:
        return _SPELLINGS.get(match[0], match[0])

    def mirrored(match: re.Match[str]) -> str:
        return _OPPOSITES[spelled_alike(match)]

    names = [_DIRECTION.sub(spelled_alike, _NEXT_WORD.sub("_", name).lower()) for name in class_names]
    labels: list[int | None] = []
    for label, name in enumerate(names):
        partner = _DIRECTION.sub(mirrored, name)
        if partner == name or (partner not in names and not _DIRECTION.search(_STRAIGHT.sub("", name))):
            labels.append(label)
        else:
            labels.append(names.index(partner) if names.count(partner) == names.count(name) == 1 else None)
    for label, target in (pairs or {}).items():
        labels[label] = target
    # What a flip exchanges it exchanges both ways: by its name no class becomes one that `pairs` has another mind of.
    back = [None if target is None else labels[target] for target in labels]
    return tuple(target if back[label] == label else None for label, target in enumerate(labels))


def read_mirrored(path: Path, class_names: Sequence[str]) -> dict[int, int | None]:
    """The labels that the file at `path` exchanges, and those of classes that are not to be flipped.

    Its lines are `name<TAB>name` and `name`. Raises InputError for a line of another form, a name that is no class, or
    one that is there twice.
    """
    labels = {unicode_form(name): label for label, name in enumerate(class_names)}
    pairs: dict[int, int | None] = {}
    for line, text in numbered_lines(path):
        names = [unicode_form(name.strip()) for name in text.split("\t")]
        if len(names) > 2:
            raise InputError(f"{path}, line {line}: expected one or two names with a tab between them, got {text!r}")
        for name in names:
            if name not in labels:
                raise InputError(f"{path}, line {line}: {name!r} is none of the {len(labels)} classes")
            if labels[name] in pairs:
                raise InputError(f"{path}, line {line}: {name!r} is there twice")
        first, second = labels[names[0]], labels[names[-1]]
        pairs[first] = None if len(names) == 1 else second
        if len(names) == 2:
            pairs[second] = first
    return pairs


def describe_flips(class_names: Sequence[str], mirrored: Sequence[int | None]) -> str:
    """What flips do to these classes, in words for someone who may know better."""
    swapped = [
        f"{class_names[label]!r} and {class_names[target]!r}"
        for label, target in enumerate(mirrored)
        if target is not None and label < target
    ]
    exchanged = f"they exchange {', '.join(swapped)}" if swapped else "they exchange no classes"
    return (
        f"clips are flipped from left to right at random; by their names {exchanged}. If other classes mean a "
        "direction, --augmentation.mirrored FILE names the pairs, and --augmentation.flip 0 flips nothing"
    )

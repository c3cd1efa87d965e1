"""The texts of a command's options, as `--help` shows them: tyro takes them from the source."""

import ast
import inspect
import textwrap
from dataclasses import is_dataclass
from typing import Any, get_type_hints


def options_without_text(kind: type[Any]) -> list[str]:
    """The fields of a dataclass, and of those in it, that no string explains; suppressed ones are no options."""
    hints, plain = get_type_hints(kind, include_extras=True), get_type_hints(kind)
    explained: set[str] = set()
    for base in kind.__mro__[:-1]:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                explained.add(ast.unparse(field.target))
    missing = []
    for name in hints:
        if is_dataclass(plain[name]):
            missing += options_without_text(plain[name])
        elif name not in explained and "Suppress" not in str(hints[name]):
            missing.append(f"{kind.__name__}.{name}")
    return missing

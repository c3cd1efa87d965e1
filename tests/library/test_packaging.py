"""What says which version this is, and under which terms, agrees."""

import re
from pathlib import Path

import tam_triton

ROOT = Path(__file__).parents[2]


def test_one_version() -> None:
    for file, pattern in (("CITATION.cff", r"^version: (.*)$"), ("CHANGELOG.md", r"^## (\S+?),? ")):
        found = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.M)
        assert found is not None, file
        assert found[1] == tam_triton.__version__


def test_the_license_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0" in text
    assert "END OF TERMS AND CONDITIONS" in text

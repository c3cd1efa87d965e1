"""What says which version this is, and under which terms, agrees."""

import os
import re
import subprocess
import sys
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


def test_an_editable_install_is_found_beside_a_folder_of_its_name(tmp_path: Path) -> None:
    """As where Python starts in the folder around a clone."""
    (tmp_path / "tam_triton").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = "import tam_triton; print(tam_triton.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, tam_triton.__version__), done.stderr

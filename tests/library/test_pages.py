"""Every page of the documentation is tested: its Python runs here or in the test that `pages.RUN_BY` names."""

import pkgutil
import re
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torchvision.models import WeightsEnum, get_model

import tam_triton
from tam_triton import nets, temporal
from tam_triton.nets import published_state, tanet50
from tam_triton.nets.zoo import DEPTHS
from tests.library.test_classifier import trained
from tests.support import kernel_tables, pages
from tests.support.pages import DOCS, RUN_BY, blocks, python_blocks, run_page
from tests.support.video_files import encode, striped_frames
from train.recipes import RECIPES

NOT_RUN: dict[str, int] = {
    "docs/kinetics-400.md": 1,
    "docs/neighbors.md": 2,
    "docs/profiling.md": 1,
    "docs/something-something.md": 1,
    "docs/training.md": 1,
}
"""How many blocks of each page are run by no test."""
RUN_HERE = [page for page in pages.pages() if page not in RUN_BY and python_blocks(page)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What a reader has, by the place where the pages have it: a trained network, videos, a published checkpoint."""
    folder = tmp_path_factory.mktemp("files")
    network = tanet50(num_classes=174)
    for form in ("authors", "mmaction2"):
        torch.save({"epoch": 50, "state_dict": published_state(network, form)}, folder / f"{form}.pth")
    video = encode(folder / "one.mp4", striped_frames(16))
    return {
        "runs/own/checkpoints/best.pt": trained(folder / "best.pt", RECIPES["demo"]),
        "tanet_r50_8f_sthv2.pth": folder / "authors.pth",
        "tanet_mmaction2.pth": folder / "mmaction2.pth",
        "video.mp4": video,
        "videos/val/waving/one.mp4": video,
    }


@pytest.fixture
def place(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that a reader is in. torchvision's weights are random instead of downloaded."""
    for name, path in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(path)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", random_weights)
    monkeypatch.setattr("tam_triton.nets.backbones.check_download", lambda weights: None)
    monkeypatch.chdir(tmp_path)


def random_weights(weights: WeightsEnum, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
    return get_model(type(weights).__name__.removesuffix("_Weights").lower()).state_dict()


@pytest.mark.parametrize("page", RUN_HERE)
@pytest.mark.usefixtures("place")
def test_the_python_of_a_page_runs(page: str) -> None:
    run_page(page, {"torch": torch} if page == "docs/errors.md" else {})


def test_python_that_is_run_elsewhere_is() -> None:
    """The test that is named runs the page, by its name."""
    for page, test in RUN_BY.items():
        assert python_blocks(page), f"{page} has no Python any more"
        source = (pages.ROOT / test).read_text(encoding="utf-8")
        assert f'"{page}"' in source, f"{test} does not run {page}"
        assert re.search(r"run_page\(|python_blocks\(|run_block\(", source), test


@pytest.mark.parametrize("page", pages.pages())
def test_every_block_is_of_a_known_kind(page: str) -> None:
    """So that none escapes: its language is one of a few, and it stands at the beginning of its line."""
    assert re.findall(r"^[ \t]+(?:```|~~~).*$|^~~~.*$|^```+\w*[^\w\n`].*$", pages.text(page), re.MULTILINE) == []
    for block in blocks(page):
        assert block.language in pages.LANGUAGES, (page, block.line, block.language)
        assert block.language != "bash" or block.reason, f"{page}:{block.line}: a shell's own language is not run"
        assert block.language != "pycon" or page == "docs/errors.md", f"{page}:{block.line}: no test runs it"


def test_blocks_that_are_not_run_are_counted() -> None:
    """Each says why, in the one way; a new one is to be added here."""
    marked = Counter(block.page for page in pages.pages() for block in blocks(page) if block.reason)
    assert marked == NOT_RUN
    comments = sum(len(re.findall(r"^<!-- not run:", pages.text(page), re.MULTILINE)) for page in pages.pages())
    assert comments == marked.total(), "a remark that stands above no block"


SITE = (pages.ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_the_site_lists_every_page() -> None:
    """Its navigation has each page of docs/ once, and nothing else."""
    nav = SITE.split("\nnav:\n")[1].split("\n\n")[0]
    listed = re.findall(r"^ +- [^:]+: (\S+)$", nav, re.MULTILINE)
    assert len(re.findall(r"^ +- ", nav, re.MULTILINE)) == len(listed) + len(re.findall(r":$", nav, re.MULTILINE))
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_tables_of_the_kernels_are_those_of_the_results() -> None:
    page = pages.text("docs/design-notes.md")
    assert set(re.findall("<!-- table: (\\w+) -->", page)) == kernel_tables.TABLES.keys()
    assert kernel_tables.filled(page) == page, "write them anew with `python -m tests.support.kernel_tables`"


DIRECTIVE = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)


@pytest.mark.parametrize("module", [tam_triton, temporal, nets], ids=lambda module: module.__name__)
def test_all_that_a_module_gives_is_in_the_reference(module: ModuleType) -> None:
    """By its name in the module, or with a remark: a TANet of each depth."""
    page = pages.text(f"docs/api/{module.__name__.removeprefix('tam_triton.')}.md")
    listed = set(DIRECTIVE.findall(page)) | set(DIRECTIVE.findall(pages.text("docs/api/temporal.md")))
    depths = {f"{network}{depth}" for network in ("tanet", "c2d") for depth in DEPTHS}
    missing = [name for name in module.__all__ if f"{module.__name__}.{name}" not in listed and name not in depths]
    assert missing == ["MODULES"] if module is temporal else missing == []
    assert "`temporal.MODULES`" in pages.text("docs/api/temporal.md")


def test_what_the_reference_shows_is_there() -> None:
    for page in (page for page in pages.pages() if page.startswith("docs/api/")):
        for path in DIRECTIVE.findall(pages.text(page)):
            assert pkgutil.resolve_name(path) is not None, (page, path)


def test_a_block_knows_where_it_stands(tmp_path: Path) -> None:
    """By its line in the page, which a traceback shows; and a remark is of the block below it alone."""
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n```python\nx = 1\n```\n<!-- not run: a GPU -->\n```python\nx = 2\n```\n\n```\nmake x\n\n```\n"
        "```python\n\nraise KeyError(x)\n```\n",
        encoding="utf-8",
    )
    found = [(block.line, block.language, block.reason) for block in blocks(str(page))]
    assert found == [(4, "python", None), (8, "python", "a GPU"), (12, "", None), (16, "python", None)]
    assert list(pages.command_lines(str(page))) == [(12, "make x")]
    with pytest.raises(KeyError, match="1") as raised:
        run_page(str(page))
    assert (str(raised.traceback[-1].path), raised.traceback[-1].lineno) == (str(page), 16)  # counted from 0
    page.write_text("```python\nx = 1\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="the block of line 1 has no end"):
        blocks(str(page))


def test_the_site_needs_no_network() -> None:
    """Neither a font nor a script is fetched by its pages."""
    assert re.search(r"^  font: false\b", SITE, re.MULTILINE)
    assert "://" not in SITE

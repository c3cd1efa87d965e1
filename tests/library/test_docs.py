"""The pages of docs/ do what they say: their code runs, and the files and names they send a reader to exist."""

import importlib
import importlib.util
import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bench import interpreted, static, timing
from tam_triton import kernels, layout, ops, registered
from tam_triton.kernels import launch
from tests.support import pages
from tests.support.pages import ROOT
from tests.support.strategies import Problem

GUIDE = "docs/adding-a-kernel.md"
NAMED = re.compile(r"# (\w+)\.py\n")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModuleType]]:
    """The guide's blocks as modules, imported in the page's order. Triton reads a kernel's source from its file."""
    folder = tmp_path_factory.mktemp("example")
    names: list[str] = []
    for block in pages.python_blocks("docs/adding-a-kernel.md"):
        first = NAMED.match(block.code)
        assert first is not None, f"{GUIDE}:{block.line}: begins with no name of a file"
        names.append(first[1])
        (folder / f"{first[1]}.py").write_text(block.code, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield {name: importlib.import_module(name) for name in names}
        for name in names:
            sys.modules.pop(name)


PROPERTIES = re.findall(r"^def (test_\w+)", pages.text(GUIDE), re.MULTILINE)
MUTANTS = {
    "the sign swapped": ("(before - x)", "(x - before)"),
    "time walked the other way": ("if REVERSED", "if not REVERSED"),
    "before never updated": ("before = x", "before += 0"),
}
SMALL = Problem(N=2, T=3, C=4, H=3, W=3, K=1)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own look at .grad
@pytest.mark.parametrize("name", PROPERTIES)
def test_the_properties_of_the_example_hold(name: str, example: dict[str, ModuleType]) -> None:
    getattr(example["difference_properties"], name)()


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_properties_of_the_example_kill(
    mutant: str, example: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path(str(example["difference_kernel"].__file__)).read_text(encoding="utf-8")
    right, wrong = MUTANTS[mutant]
    assert original.count(right) == 1
    path = tmp_path / "mutant.py"
    path.write_text(original.replace(right, wrong), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mutant", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    properties = example["difference_properties"]
    properties.test_equals_the_reference.hypothesis.inner_test(SMALL)
    monkeypatch.setattr(properties, "BACKENDS", (module.difference,))
    with pytest.raises(AssertionError):
        properties.test_equals_the_reference.hypothesis.inner_test(SMALL)


def test_the_example_makes_the_passes_it_says(example: dict[str, ModuleType]) -> None:
    x = SMALL.features()
    with interpreted.counting() as launches:
        example["difference_kernel"].difference(x, SMALL.T, False)
    (only,) = launches
    moved = [(tensor.loaded, tensor.stored) for tensor in only.tensors.values()]
    assert moved == [(x.nbytes, 0), (0, x.nbytes)]
    assert sum(map(sum, moved)) == example["difference_bench"].PASSES * x.nbytes


def test_the_row_of_the_example(example: dict[str, ModuleType]) -> None:
    x = SMALL.features()
    times = example["difference_bench"].measure(x, SMALL.T, rounds=3)
    assert set(times) == {"ours", "eager"}
    assert all(0 < multiple < float("inf") for multiple in times.values())
    (call,) = example["difference_bench"].CALLS.values()
    assert torch.equal(call(x, SMALL.importance(), SMALL.kernel()), example["difference_operator"].difference(x, 3))


@pytest.mark.parametrize("page", pages.pages())
def test_files_that_a_page_names_exist(page: str) -> None:
    """And a page of the site links to others of it alone, as the site has no other files."""
    text = pages.text(page)
    linked = [(ROOT / page).parent / target for target in re.findall(r"\]\(([^\s):#]+)(?:#[^\s)]*)?\)", text)]
    named = [ROOT / path for path in re.findall(r"`((?:tam_triton|reference|tests|train|bench|docs)/[\w./]*)`", text)]
    assert linked or named or page not in ("README.md", GUIDE)
    assert [str(path) for path in (*linked, *named) if not path.exists()] == []
    if page.startswith("docs/"):
        outside = [str(path) for path in linked if pages.DOCS not in path.resolve().parents]
        assert outside == [], "a page of the site links to a file that is none of it"


ANCHOR = re.compile(r"\]\(([^\s):]*)#([^\s)]*)\)")


@pytest.mark.parametrize("page", pages.pages())
def test_headings_that_a_page_links_to_exist(page: str) -> None:
    for target, anchor in ANCHOR.findall(pages.text(page)):
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        included = re.findall(r'^--8<-- "(.+)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
        sources = [path.read_text(encoding="utf-8"), *((ROOT / name).read_text(encoding="utf-8") for name in included)]
        headings = [slugify(title) for source in sources for title in re.findall(r"^#+ (.+)$", source, re.MULTILINE)]
        assert anchor in headings, f"{page}: {target}#{anchor}"


def slugify(title: str) -> str:
    """The anchor of a heading, as the site makes it."""
    plain = unicodedata.normalize("NFKD", title.replace("`", "")).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


@pytest.mark.parametrize(
    ("place", "names"),
    [
        (ops, ["OPERATORS", "operator", "INTERPRETED"]),
        (registered, ["register", "refuse_backward"]),
        (kernels, ["__all__"]),
        (launch, ["on_device", "accumulator", "offset_dtype"]),
        (layout, ["needs_int64", "is_channels_last", "empty_result"]),
        (static, ["CALLS"]),
        (timing, ["interleaved"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_names_that_the_guide_gives_exist(place: ModuleType, names: list[str]) -> None:
    text = pages.text(GUIDE)
    for name in names:
        assert name in text, name
        assert hasattr(place, name), name


def test_the_guide_is_found() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        assert f"]({GUIDE})" in pages.text(page)

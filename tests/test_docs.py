"""The documentation: examples run, every op has a page, the questions quote the package's texts."""

import doctest
import re
from pathlib import Path

import pytest
from test_backbones import timm  # noqa: F401

import infoseg_fast as isf
from infoseg_fast.ops import OPS

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize("name", OPS)
def test_the_example_of_an_op_runs(name):
    page = DOCS / "ops" / f"{name}.md"
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    found = doctest.testfile(str(page), module_relative=False, optionflags=flags)
    assert found.attempted >= 3 and found.failed == 0
    text = page.read_text()
    for heading in ("Equation", "Arguments and result", "Cost", "Accuracy", "Example"):
        assert f"\n## {heading}\n" in text
    assert f"(ops/{name}.md)" in (DOCS / "ops.md").read_text()


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_loops_of_the_page_about_own_loops_run(timm):  # noqa: F811
    """The block of Lightning is an import, and tests/test_compat.py trains with it."""
    pytest.importorskip("torchmetrics")
    found = [block for block in blocks("own_loop.md") if "compat.lightning" not in block]
    assert len(found) == 3 and sum("timm" in block for block in found) == 1
    for block in found:
        exec(compile(block, "own_loop.md", "exec"), {})


def test_the_questions_quote_texts_of_the_package():
    root = Path(isf.__file__).parent
    files = [*root.rglob("*.py"), root.parent / "setup.py", *(root.parent / "csrc").rglob("*.cpp")]
    source = "\n".join(path.read_text() for path in sorted(files))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # one literal in several lines
    quoted = re.findall(r"^### `(.+)`$", (DOCS / "faq.md").read_text(), flags=re.MULTILINE)
    assert len(quoted) >= 25
    for text in quoted:
        parts = [re.escape(part) for part in re.split(r"\s*…\s*", text) if part.strip()]
        assert re.search(".{0,200}?".join(parts), source), text


def test_every_public_name_is_on_the_page_of_the_api():
    described = re.findall(r"^::: infoseg_fast\.(\w+)$", (DOCS / "api.md").read_text(), flags=re.MULTILINE)
    assert set(described) == set(isf.__all__)


def test_every_page_is_in_the_navigation():
    navigation = (DOCS.parent / "mkdocs.yml").read_text()
    for page in DOCS.rglob("*.md"):
        assert f": {page.relative_to(DOCS).as_posix()}\n" in navigation

"""The code blocks of the README: the lines before and after compute the same loss and gradients."""

import re
import textwrap
from pathlib import Path

import torch
from conftest import inputs
from torch import nn
from torch.nn.functional import softplus

import infoseg_fast as isf

README = Path(__file__).resolve().parent.parent / "README.md"


def code_block(containing: str) -> str:
    blocks = re.findall(r"(?:^    .*\n|^\n)+", README.read_text(), flags=re.MULTILINE)
    return textwrap.dedent(next(block for block in blocks if containing in block))


def test_the_lines_before_and_after_are_equivalent():
    features, global_features, weight, bias = inputs(requires_grad=True)
    projection = nn.Conv2d(5, 7, 1).double()
    projection.weight.data, projection.bias.data = weight.detach()[..., None, None], bias.detach()
    results = []
    for block in ("softplus(-(local * S)", "isf.mutual_information_loss("):
        names = {
            "torch": torch, "softplus": softplus, "projection": projection, "features": features,
            "global_features": global_features, "temperature": 1.4,
        }  # fmt: skip
        exec(code_block(block), names)
        loss = names["loss"]
        results.append((loss, *torch.autograd.grad(loss, [features, global_features, *projection.parameters()])))
    for before, after in zip(*results, strict=True):
        torch.testing.assert_close(before, after)


def test_every_file_the_readme_names_is_there():
    named = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    assert named and all((README.parent / name).exists() for name in named)


def test_the_package_has_the_error_texts_of_the_questions():
    package = Path(isf.__file__).parent
    source = "\n".join(path.read_text() for path in sorted(package.rglob("*.py")))
    texts = re.findall(r"^- \*`(.+?)`\*", README.read_text(), flags=re.MULTILINE)
    assert len(texts) >= 5
    for text in texts:
        pattern = re.sub(r"\b(RUN|nan)\b", r"\\{[^{}]+\\}", re.escape(text))
        assert re.search(pattern, source), text


def test_the_citation_has_the_version_of_the_package():
    citation = (README.parent / "CITATION.cff").read_text()
    assert re.search(r"^version: (.+)$", citation, flags=re.MULTILINE)[1] == isf.__version__


def test_every_op_of_the_readme_is_exported():
    named = re.findall(r"`isf\.(\w+)", README.read_text())
    assert len(set(named)) >= 14 and all(hasattr(isf, name) for name in named)

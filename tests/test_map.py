"""Pages that say where things are, compared with the tree: paths, names, links, order of imports."""

import ast
import re
import tomllib

import pytest

from tests.conftest import ROOT

MAP = ROOT / "docs" / "architecture.md"
PAGES = (MAP, ROOT / "CONTRIBUTING.md")

_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"(?P<path>\.?[\w.-]+(?:/[\w.-]+)*/?)(?::(?P<name>[A-Za-z_]\w*))?")
_LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
TOP = {path.name for path in ROOT.iterdir()} & {
    *(".ci", "bench", "deploy", "docs", "export", "handlers", "requirements", "tests"),
    *("torchport", "torchport_runtime"),
}


def paths_in(page):
    """The files and folders of this tree that a page names in code, with the name after a colon, if any."""
    for code in _CODE.findall(_FENCED.sub("", page.read_text(encoding="utf-8"))):
        found = _PATH.fullmatch(code)
        if found and "/" in found["path"] and found["path"].split("/")[0] in TOP:
            yield found["path"], found["name"]


def names_in(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }


def layers_of(contract):
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return next(found["layers"] for found in contracts if found["id"] == contract)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_is_there(page):
    paths = list(paths_in(page))
    assert paths
    for name, inside in paths:
        path = ROOT / name
        assert path.is_dir() if name.endswith("/") else path.is_file(), name
        if inside is not None:
            assert inside in names_in(path), f"{name}:{inside}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_every_folder_of_the_packages_is_on_the_map():
    named = {name for name, _ in paths_in(MAP)}
    for package in ("torchport", "torchport_runtime"):
        for file in (ROOT / package).rglob("__init__.py"):
            assert f"{file.parent.relative_to(ROOT).as_posix()}/" in named


@pytest.mark.parametrize("contract", ["road", "server", "inside-the-runtime"])
def test_the_order_on_the_map_is_the_one_that_is_enforced(contract):
    """One below the other, as the contract in pyproject.toml has them."""
    text = MAP.read_text(encoding="utf-8").partition("\n## Who may import whom\n")[2].partition("\n## ")[0]
    rows = [re.split(r"\s{2,}", line) for block in _FENCED.findall(text) for line in block.splitlines()]
    layers = layers_of(contract)
    starts = [index for index, row in enumerate(rows) if layers[0] in row]
    assert len(starts) == 1
    column = rows[starts[0]].index(layers[0])
    assert [row[column] for row in rows[starts[0] : starts[0] + len(layers)]] == layers

"""The documentation: links resolve, names exist, generated pages are current.

Pages in ``docs/results/`` are generated from figures that were measured at older commits, and
may name modules as they were called then; every other page is checked against the tree.
"""

import ast
import doctest
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

import exhume
from tests.repository import cli_page, formats_page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = DOCS / "results"
# The stub, which type checkers read, holds imports alone.
PUBLIC_NAMES: list[str] = vars(exhume)["__all__"]
PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"benchmarks", "tests"}
READMES = [page for top in sorted(PACKAGES) for page in (ROOT / top).rglob("README.md")]
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *READMES])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WRITTEN = [page for page in [*PAGES, *NOTEBOOKS] if RESULTS not in page.parents]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)
REMOTE = re.compile(r"""<(?:script|img|iframe|source)[^>]+src=["']?(?:https?:)?//""")
REMOTE_STYLE = re.compile(r"""<link[^>]+rel=["']?stylesheet[^>]+href=["']?(?:https?:)?//""")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    """A page, or the Markdown cells of a notebook."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return FENCE.sub("", text_of(page))


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as Markdown's ``toc`` extension makes them."""
    found = set()
    for title in HEADING.findall(prose(page)):
        plain = re.sub(r"[`*]|\]\([^)]*\)|\[", "", title)
        plain = re.sub(r"[^\w\s-]", "", plain).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", plain))
    return found


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=named)
def test_relative_links_resolve(page):
    broken = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = Path(os.path.normpath(page.parent / place)) if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def nav(entries) -> Iterator[str]:
    for entry in entries:
        for value in entry.values():
            yield from nav(value) if isinstance(value, list) else [value]


def test_every_page_of_the_site_is_listed_once():
    settings = yaml.safe_load(text_of(ROOT / "mkdocs.yml"))
    listed = Counter(nav(settings["nav"]))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert listed == Counter(pages)


@cache
def defined(module: Path) -> frozenset[str]:
    """Names at the top level of a module."""
    found = set()
    for node in ast.parse(text_of(module)).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {
                each.id
                for target in targets
                for each in ast.walk(target)
                if isinstance(each, ast.Name)
            }
    return frozenset(found)


def exists(name: str) -> bool:
    """Whether a dotted name is a package, a module, or a name that a module defines."""
    place, parts = ROOT, name.split(".")
    for at, part in enumerate(parts):
        module = (place / part).with_suffix(".py")
        if module.is_file():
            rest = parts[at + 1 :]
            return not rest or rest[0] in defined(module)
        if not (place / part).is_dir():
            return name.startswith("exhume.") and parts[1] in PUBLIC_NAMES
        place /= part
    return True


def mentioned(page: Path) -> set[str]:
    return {word for span in SPAN.findall(prose(page)) for word in re.split(r"[\s,;()]+", span)}


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_names_and_paths_exist(page):
    """Names in code spans; words such as ``NAME`` or ``*`` in a path stand for others."""
    tests = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    wrong = []
    for word in mentioned(page):
        path, _, function = word.partition("::")
        path = re.sub(r"^results/(?=.+json)", "benchmarks/results/", path)
        top = re.split(r"[./]", path)[0]
        if re.search(r"[A-Z]{3,}\.|[*{]|echo", path):
            continue
        if path.endswith(".py") and "/" not in path and path.startswith("test_"):
            good = path in tests and (not function or function in defined(tests[path]))
        elif top not in PACKAGES | {"docs", "notebooks"}:
            continue
        elif "/" in path:
            good = (ROOT / path).exists()
            if good and function:
                good = function in defined(ROOT / path)
        else:
            good = "." not in path or exists(path.rstrip("."))
        if not good:
            wrong.append(word)
    assert not wrong


def test_contributing_names_what_exists():
    """Constants, classes and functions in code spans are defined somewhere."""
    spans = SPAN.findall(prose(ROOT / "CONTRIBUTING.md"))
    names = {span for span in spans if re.fullmatch(r"[A-Z]\w+|\w+_\w*|_\w+", span)}
    modules = [path for top in PACKAGES for path in (ROOT / top).rglob("*.py")]
    known = frozenset[str]().union(*map(defined, modules))
    assert names - known <= {"NAME", "QUESTION", "REV", "n_"}


def test_sources_name_pages_that_exist():
    wrong = []
    for top in PACKAGES:
        for module in (ROOT / top).rglob("*.py"):
            pages = re.findall(r"\bdocs/[\w/]+\.md\b", text_of(module))
            wrong += [f"{named(module)}: {page}" for page in pages if not (ROOT / page).exists()]
    assert not wrong


def python_blocks() -> list[tuple[str, str]]:
    return [
        (named(page), code)
        for page in WRITTEN
        for kind, code in FENCE.findall(text_of(page))
        if kind == "python"
    ]


@pytest.mark.parametrize(("page", "code"), python_blocks())
def test_examples_parse_and_import_what_exists(page, code):
    wrong = []
    if code.startswith(">>>"):
        code = "".join(each.source for each in doctest.DocTestParser().get_examples(code))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in PACKAGES:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            wrong += [name for name in names if not exists(name)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "exhume" and node.attr not in PUBLIC_NAMES:
                wrong.append(f"exhume.{node.attr}")
    assert not wrong


def test_the_command_line_page_is_current():
    hint = "run `python -m tests.repository.cli_page`"
    assert text_of(cli_page.PAGE) == cli_page.page(), hint


def test_the_pages_on_formats_are_current():
    hint = "run `python -m tests.repository.formats_page`"
    assert text_of(formats_page.PAGE) == formats_page.page(), hint
    guide = text_of(formats_page.GUIDE)
    assert guide == formats_page.guide(guide), hint


def test_terms_are_defined_once():
    glossary = text_of(DOCS / "glossary.md").split("## Stored labels")[0]
    terms = re.findall(r"^\| ([^|]+?) \|", glossary, re.MULTILINE)
    words = Counter(term for term in terms if term not in ("term", "verdict"))
    assert max(words.values()) == 1


def test_the_readme_is_short():
    assert len(text_of(ROOT / "README.md").splitlines()) < 150


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        text = text_of(page)
        assert not REMOTE.search(text) and not REMOTE_STYLE.search(text), page.name

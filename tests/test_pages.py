"""The pages say what is so: links lead somewhere, messages and findings are those of the code, limits those of `Thresholds`."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hardneg.diagnostics.findings.rules import RULES
from hardneg.diagnostics.findings.thresholds import Thresholds

from .pages import PAGES, README, ROOT

LINKED = [
    README,
    *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "examples/README.md", "notebooks/README.md")),
    *PAGES,
]


def without_code(text: str) -> str:
    """The text without blocks of code and code in a line, which may hold brackets."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = sum(each == name or re.fullmatch(rf"{re.escape(name)}-\d+", each) is not None for each in found)
        found.add(f"{name}-{number}" if number else name)
    return found


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file of the repository, and every anchor a heading there."""
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), f"{page.name}: {link} leads out of the repository"
        assert target.exists(), f"{page.name}: {link} does not exist"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}: there is no such heading"


def test_every_page_is_reached() -> None:
    """From README, in one step or more."""
    reached, ahead = {README}, [README]
    while ahead:
        page = ahead.pop()
        for link in re.findall(r"\]\(([^)\s#]+\.md)", without_code(page.read_text("utf-8"))):
            target = (page.parent / link).resolve()
            if target in PAGES and target not in reached:
                reached.add(target)
                ahead.append(target)
    assert set(PAGES) <= reached, set(PAGES) - reached


def texts_of_the_code() -> list[str]:
    """Every text in the code; what an f-string fills in is a NUL."""
    found = []
    for folder in ("hardneg", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(str(x.value) if isinstance(x, ast.Constant) else "\0" for x in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def test_quoted_messages_are_those_of_the_code() -> None:
    quoted = re.findall(r"^### `(.*)`$", (ROOT / "docs" / "troubleshooting.md").read_text("utf-8"), re.M)
    assert len(quoted) >= 20
    texts = texts_of_the_code()
    for message in quoted:
        parts = [part.strip() for part in message.split("...") if part.strip()]
        pattern = re.compile(".*".join(re.escape(part) for part in parts), re.S)
        assert any(pattern.search(text) for text in texts), f"no message of the code reads: {message}"


def test_every_finding_is_explained() -> None:
    """And no other one; each limit that its page gives is the default."""
    page = (ROOT / "docs" / "findings.md").read_text("utf-8")
    sources = [
        *(ROOT / "hardneg" / "diagnostics" / "findings").glob("*rules.py"),
        ROOT / "hardneg" / "diagnostics" / "training_run.py",
    ]
    code = "\n".join(path.read_text("utf-8") for path in sources)
    codes = set(re.findall(r'\bFinding\(\s*"([a-z-]+)"', code))
    codes |= {str(code) for rule in RULES if (code := getattr(rule, "code", None)) is not None}
    assert len(codes) >= 30
    explained = re.findall(r"^### `([a-z-]+)`$", page, re.M)
    assert sorted(explained) == sorted(codes)
    defaults, given = Thresholds(), re.findall(r"`(\w+)` = ([\d.]*\d)", page)
    assert {name for name, _ in given} == set(Thresholds.__dataclass_fields__)
    for name, value in given:
        assert float(value) == getattr(defaults, name), name


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    """As `make docs` builds it."""
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("no mkdocs: pip install --constraint constraints.txt '.[docs]', as make docs does")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "api" / "hardneg.losses" / "index.html").is_file()


def test_the_site_has_every_page() -> None:
    """In its navigation, which mkdocs only warns about."""
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    for page in PAGES:
        assert re.search(rf"[ :]{re.escape(page.name)}$", navigation, re.M), (
            f"{page.name} is not in the nav of mkdocs.yml"
        )

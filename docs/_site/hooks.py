"""Hooks of mkdocs: README and other pages of the repository become pages of the site, and each package has a page of the API."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent
ADDED = (
    "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/RESULTS.md", "benchmarks/integrations.md",
    "examples/README.md", "notebooks/README.md",
)  # fmt: skip
_LINK = re.compile(r"\]\(([^)\s:#]+)(#[^)\s]*)?\)")
_NAME = re.compile(r"^from ([\w.]+) import (\w+) as \2$", re.M)
_places: dict[str, str] = {}  # where a page of the site comes from, as a path in the repository


def uri_of(path: str) -> str:
    """The place in the site of a file of the repository.

    >>> uri_of("docs/mining.md"), uri_of("README.md"), uri_of("CITATION.cff")
    ('mining.md', 'index.md', 'CITATION.cff')
    """
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def on_config(config: Any) -> Any:
    """Add the pages of the API to the navigation."""
    pages = [{f"hardneg.{package}": f"api/hardneg.{package}.md"} for package in _packages()]
    for entry in config["nav"]:
        if isinstance(entry, dict) and "API" in entry:
            entry["API"] = [{"Overview": "api/index.md"}, *pages]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add what stands outside of docs/, what it links to, and the API."""
    _places.update({file.src_uri: f"docs/{file.src_uri}" for file in files.documentation_pages()})
    for path in ADDED:
        files.append(File.generated(config, uri_of(path), content=(ROOT / path).read_text("utf-8")))
        _places[uri_of(path)] = path
    for path in [*_places.values()]:  # files that are linked to, such as scripts and notebooks
        for link, _ in _LINK.findall((ROOT / path).read_text("utf-8")):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
            if (ROOT / target).is_file() and files.get_file_from_path(uri_of(target)) is None:
                files.append(File.generated(config, uri_of(target), content=(ROOT / target).read_bytes()))
    for uri, content in _reference().items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    uri = page.file.src_uri
    place = _places.get(uri)
    if place is None:
        return markdown

    def moved(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), found[1]))
        if not (ROOT / target).is_file():
            return found[0]
        return f"]({posixpath.relpath(uri_of(target), posixpath.dirname(uri) or '.')}{found[2] or ''})"

    return _LINK.sub(moved, markdown)


def _packages() -> list[str]:
    return sorted(path.parent.name for path in (ROOT / "hardneg").glob("*/__init__.pyi"))


def _reference() -> dict[str, str]:
    """The pages of the API by their uri: one with links from the names of `hardneg`, and one for each package."""
    pages = {}
    top = _NAME.findall((ROOT / "hardneg" / "__init__.pyi").read_text("utf-8"))
    lines = [f"- [`hardneg.{name}`][{module}.{name}]" for module, name in top if module != "hardneg" and name[0] != "_"]
    for package in _packages():
        named = _NAME.findall((ROOT / "hardneg" / package / "__init__.pyi").read_text("utf-8"))
        own = [(module, name) for module, name in named if module.startswith(f"hardneg.{package}.")]
        inside = {f"{module}.{name}" for module, name in own}
        own += [(m, n) for m, n in top if m.startswith(f"hardneg.{package}.") and f"{m}.{n}" not in inside]
        whole = [f"::: {module}.{name}\n" for module, name in own]
        pages[f"api/hardneg.{package}.md"] = f"# hardneg.{package}\n\n" + "\n".join(whole)
    errors = [name for module, name in top if module == "hardneg.errors"]
    head = "# API\n\nThe names that `import hardneg` has. Each package has a page of its own, with all of its public names.\n\n"
    tail = "\n\n## Errors\n\n" + "\n".join(f"::: hardneg.errors.{name}\n" for name in errors)
    return pages | {"api/index.md": head + "\n".join(lines) + tail}

"""Write a report as one self-contained HTML file with findings, charts, numbers and example queries.

The file requests nothing from the network, and its Content-Security-Policy forbids such requests. The policy allows two
scripts only, which it names by their SHA-256. The texts of the dataset cannot run as code: the file holds them as
JSON in a script element that is not executed, and the page shows them as text nodes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from hardneg.diagnostics.compare import Comparison
from hardneg.diagnostics.diagnose import Diagnosis
from hardneg.diagnostics.findings.base import Finding
from hardneg.diagnostics.labels import comparison_rows, number_rows
from hardneg.diagnostics.report.charts import Spec, charts, comparison_charts
from hardneg.diagnostics.report.examples import examples
from hardneg.diagnostics.report.thumbnails import Thumbnails
from hardneg.errors import MissingDependencyError
from hardneg.mining.run import Run
from hardneg.storage.files import atomic_path
from hardneg.storage.outputs import check_replaceable


@dataclass(frozen=True)
class Page:
    """The contents of a report.

    Attributes:
        title: the title.
        lead: the summary below the title.
        findings: the findings to show, the most severe first.
        charts: Vega-Lite specifications by name.
        numbers: the rows of the table of numbers: (label, value, remark).
        examples: the example queries, from `hardneg.diagnostics.report.examples`.
        total: the number of queries in the run.
        pictures: the small copies of pictures that the examples show.
    """

    title: str
    lead: str
    findings: list[Finding]
    charts: dict[str, Spec]
    numbers: Sequence[tuple[str, str, str]]
    examples: list[dict[str, Any]]
    total: int
    pictures: Thumbnails = field(default_factory=Thumbnails)


def write_report(found: Diagnosis, run: Run | str | Path, path: str | Path, most: int = 200) -> None:
    """Write the report of a run to an HTML file. The file is written completely or not at all.

    Args:
        found: the diagnosis of the run.
        run: the run or its folder, to read the candidates of the example queries from.
        path: the path of the file.
        most: the largest number of example queries.

    Raises:
        MissingDependencyError: the extra `report` is not installed.
    """
    write_page(report_page(found, run if isinstance(run, Run) else Run(run), most), path)


def report_page(found: Diagnosis, run: Run, most: int = 200) -> Page:
    """The page that `write_report` writes. The arguments are those of `write_report`."""
    subject = found.subject
    counts = {s: sum(f.severity == s for f in found.findings) for s in ("error", "warning", "info")}
    problems = ", ".join(f"{n} {name}{'s' if n != 1 and name != 'info' else ''}" for name, n in counts.items() if n)
    lead = f"{len(subject.pairs):,} queries, {len(subject.pairs.document_ids):,} documents, "
    lead += f"{int(subject.real.sum()):,} negatives. {problems or 'No problems found'}."
    numbers = number_rows(found.to_json()["numbers"])
    pictures = Thumbnails()
    title, queries = f"Negatives of {subject.name}", examples(run, subject, most, pictures)
    return Page(title, lead, found.findings, charts(found), numbers, queries, len(subject.pairs), pictures)


def write_comparison(found: Comparison, path: str | Path) -> None:
    """Write the report of a comparison to an HTML file. The file is written completely or not at all.

    Args:
        found: the comparison.
        path: the path of the file.

    Raises:
        MissingDependencyError: the extra `report` is not installed.
    """
    before, after = found.before.subject, found.after.subject
    changes = [replace(finding, text=f"{change}: {finding.text}") for change, finding in found.changes]
    lead = f"{found.overlap.value:.0%} of the negatives are in both runs. " + (
        "" if changes else "No finding has changed."
    )
    title = f"{after.name} compared with {before.name}"
    numbers = comparison_rows(found.to_json())
    write_page(Page(title, lead, changes, comparison_charts(found), numbers, [], len(after.pairs)), path)


def write_page(page: Page, path: str | Path) -> None:
    """Write a page to an HTML file. The file is written completely or not at all."""
    text = render(page)
    check_replaceable(Path(path), "report", b"Report by hardneg")
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(text, "utf-8")


def render(page: Page) -> str:
    """Render a page as HTML. Raises MissingDependencyError if the extra `report` is not installed."""
    try:
        from jinja2 import Environment
        from markupsafe import Markup
    except ImportError:
        raise MissingDependencyError("jinja2", "report", "the HTML report") from None
    library = _library()
    home = files("hardneg.diagnostics.report")
    script = home.joinpath("report.js").read_text("utf-8")
    # A `<` in a text could end the script element that holds the data, so write it as a JSON escape.
    shown = {"charts": page.charts, "examples": page.examples, "pictures": page.pictures.uris}
    data = json.dumps(shown, ensure_ascii=False, allow_nan=False)
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    policy += f"script-src {_hashed(library)} {_hashed(script)}"
    template = Environment(autoescape=True).from_string(home.joinpath("report.html.j2").read_text("utf-8"))
    return template.render(
        page=page, policy=Markup(policy), data=Markup(data), library=Markup(library), script=Markup(script)
    )


@cache
def _library() -> str:
    """The JavaScript of Vega, Vega-Lite and Vega-Embed, from the package vl-convert."""
    try:
        from vl_convert import javascript_bundle
    except ImportError:
        raise MissingDependencyError("vl-convert-python", "report", "the HTML report") from None
    text: str = javascript_bundle(None)
    # Escape what would end the script element or open a comment in it, so that the HTML parser reads all of it.
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hashed(script: str) -> str:
    """The SHA-256 of a script, as a source expression of a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"

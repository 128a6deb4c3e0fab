"""One self-contained HTML file: findings, charts, numbers, and example queries.

The file requests nothing from the network, and its Content-Security-Policy forbids it. The only scripts that run are the two
whose SHA-256 the policy names. Texts of the dataset are data (JSON in a script element that is not executed) and become text
nodes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from hardneg.errors import MissingDependencyError
from hardneg.mining.run import Run
from hardneg.storage.files import atomic_path


@dataclass(frozen=True)
class Page:
    """The contents of a report.

    Attributes:
        title, lead: the title, and the sentence below it.
        findings: cards, worst first.
        charts: specifications by name.
        numbers: rows of the table: label, value, remark.
        examples: see `hardneg.diagnostics.report.examples`.
        total: the number of queries in the run.
    """

    title: str
    lead: str
    findings: list[Finding]
    charts: dict[str, Spec]
    numbers: Sequence[tuple[str, str, str]]
    examples: list[dict[str, Any]]
    total: int


def write_report(found: Diagnosis, run: Run, path: str | Path, most: int = 200) -> None:
    """Write the report of a run. The file is complete or not written at all.

    Args:
        found: the diagnosis of the run.
        run: the run, for the candidates of the queries that are shown.
        path: the file.
        most: highest number of queries that are shown.

    Raises:
        MissingDependencyError: the extra `report` is not installed.
    """
    write_page(report_page(found, run, most), path)


def report_page(found: Diagnosis, run: Run, most: int = 200) -> Page:
    """The page that `write_report` writes. The arguments are the same."""
    subject = found.subject
    counts = {s: sum(f.severity == s for f in found.findings) for s in ("error", "warning", "info")}
    said = ", ".join(f"{n} {name}{'s' if n != 1 and name != 'info' else ''}" for name, n in counts.items() if n)
    lead = f"{len(subject.pairs):,} queries, {len(subject.pairs.document_ids):,} documents, "
    lead += f"{int(subject.real.sum()):,} negatives. {said or 'Nothing is wrong'}."
    numbers = number_rows(found.to_json()["numbers"])
    title, shown = f"Negatives of {subject.name}", examples(run, subject, most)
    return Page(title, lead, found.findings, charts(found), numbers, shown, len(subject.pairs))


def write_comparison(found: Comparison, path: str | Path) -> None:
    """Write the report of a comparison. The arguments are those of `write_report`."""
    before, after = found.before.subject, found.after.subject
    changes = [replace(finding, text=f"{change}: {finding.text}") for change, finding in found.changes]
    lead = f"{found.overlap.value:.0%} of the negatives are in both. " + ("" if changes else "No finding has changed.")
    title = f"{after.name} against {before.name}"
    numbers = comparison_rows(found.to_json())
    write_page(Page(title, lead, changes, comparison_charts(found), numbers, [], len(after.pairs)), path)


def write_page(page: Page, path: str | Path) -> None:
    text = render(page)
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(text, "utf-8")


def render(page: Page) -> str:
    """The page as HTML."""
    try:
        from jinja2 import Environment
        from markupsafe import Markup
    except ImportError:
        raise MissingDependencyError("jinja2", "report", "the HTML report") from None
    library = _library()
    home = files("hardneg.diagnostics.report")
    script = home.joinpath("report.js").read_text("utf-8")
    # `<` could end the element that contains the data; JSON may write it as an escape.
    data = json.dumps({"charts": page.charts, "examples": page.examples}, ensure_ascii=False, allow_nan=False)
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    policy += f"script-src {_hashed(library)} {_hashed(script)}"
    template = Environment(autoescape=True).from_string(home.joinpath("report.html.j2").read_text("utf-8"))
    return template.render(
        page=page, policy=Markup(policy), data=Markup(data), library=Markup(library), script=Markup(script)
    )


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed, as packaged in vl-convert."""
    try:
        from vl_convert import javascript_bundle
    except ImportError:
        raise MissingDependencyError("vl-convert-python", "report", "the HTML report") from None
    text: str = javascript_bundle(None)
    # The HTML parser must not find the end of the element inside it, whatever strings the library contains.
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hashed(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"

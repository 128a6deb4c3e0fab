"""Write a report as one self-contained HTML file: findings, a table of queries to work in, charts, numbers and provenance.

The file requests nothing from the network, and its Content-Security-Policy forbids such requests. The policy allows two
scripts only, which it names by their SHA-256. The texts of the dataset cannot run as code: the file holds them as
JSON in a script element that is not executed, and the page shows them as text nodes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from hardneg.diagnostics.alternatives import Alternative
from hardneg.diagnostics.compare import Comparison
from hardneg.diagnostics.diagnose import Diagnosis
from hardneg.diagnostics.findings.base import Finding
from hardneg.diagnostics.labels import SLICE_MEASURES, comparison_rows, number_rows
from hardneg.diagnostics.measures.slices import slicings
from hardneg.diagnostics.report.charts import Spec, charts, comparison_charts
from hardneg.diagnostics.report.drawn import DrawnPairs, drawn_pairs
from hardneg.diagnostics.report.flags import flagged
from hardneg.diagnostics.report.provenance import provenance
from hardneg.diagnostics.report.queries import choose, query_data
from hardneg.diagnostics.report.thumbnails import Thumbnails
from hardneg.diagnostics.subject import Subject
from hardneg.errors import MissingDependencyError
from hardneg.mining.run import Run
from hardneg.storage.files import atomic_path, fingerprint
from hardneg.storage.outputs import check_replaceable

QUERIES = 1000  # the largest number of queries in the table

_SIGN = b"Report by hardneg"  # what every report holds

_SLICES = 20  # the largest number of slices in their table

_SCRIPTS = ("base.js", "charts.js", "query.js", "table.js", "judge.js", "start.js")  # in the order in which they run


@dataclass(frozen=True)
class Page:
    """The contents of a report.

    Attributes:
        title: the title.
        lead: the summary below the title.
        findings: the findings to show, the most severe first.
        charts: Vega-Lite specifications by name.
        numbers: the rows of the table of numbers, three cells each.
        columns: the heads of that table.
        heading: the heading of the findings.
        alternatives: the table of what fixes would do; its first row is the head.
        flags: how many of the queries of the table a finding is known to concern, by its code.
        queries: the data of the table of queries, see `hardneg.diagnostics.report.queries`; None for no table.
        slices: for each way to slice the queries, `names` and, for each query of the table, `of`: the place of its slice in them.
        slice_rows: the table of slices, the worst first; its first row is the head.
        about_queries: what the table of queries shows.
        command: the command that takes what was judged in the table.
        drawn: pairs to judge that `hardneg judge` drew.
        drawn_command: the command that takes what was judged of them.
        provenance: (what, value) of where the run comes from.
        digest: tells the judgements of different runs apart.
    """

    title: str
    lead: str
    findings: list[Finding]
    charts: dict[str, Spec]
    numbers: Sequence[tuple[str, str, str]]
    columns: tuple[str, str, str] = ("number", "value", "interval or remark")
    heading: str = "Findings"
    alternatives: list[tuple[str, ...]] = field(default_factory=list)
    flags: dict[str, int] = field(default_factory=dict)
    queries: dict[str, Any] | None = None
    slices: dict[str, dict[str, Any]] = field(default_factory=dict)
    slice_rows: list[tuple[str, ...]] = field(default_factory=list)
    about_queries: str = ""
    command: str = ""
    drawn: DrawnPairs | None = None
    drawn_command: str = ""
    provenance: list[tuple[str, str]] = field(default_factory=list)
    digest: str = ""


def check_report(path: str | Path, run: Run, judgements: str | Path | None = None) -> None:
    """What `write_report` checks, without its work: to be called before a long diagnosis. The arguments are the same."""
    check_replaceable(Path(path), "report", _SIGN)
    if judgements is not None:
        drawn_pairs(judgements, run.pairs())


def write_report(
    found: Diagnosis, run: Run | str | Path, path: str | Path, most: int = QUERIES, judgements: str | Path | None = None
) -> None:
    """Write the report of a run to an HTML file. The file is written completely or not at all.

    Args:
        found: the diagnosis of the run.
        run: the run or its folder, to read the candidates of the queries from.
        path: the path of the file.
        most: the largest number of queries in the table.
        judgements: a file of `hardneg judge`, whose pairs can be judged in the report.

    Raises:
        MissingDependencyError: the extra `report` is not installed. DataError: `judgements` is not such a file.
    """
    write_page(report_page(found, run if isinstance(run, Run) else Run(run), most, judgements), path)


def report_page(found: Diagnosis, run: Run, most: int = QUERIES, judgements: str | Path | None = None) -> Page:
    """The page that `write_report` writes. The arguments are those of `write_report`."""
    subject = found.subject
    drawn = None if judgements is None else drawn_pairs(judgements, subject.pairs)
    flags = flagged(subject, found.findings)
    chosen = choose(subject, flags, most)
    pictures = Thumbnails()
    queries = query_data(run, subject, chosen, flags, pictures)
    divided = slicings(subject)
    name = shlex.quote(subject.name)
    return Page(
        title=f"Negatives of {subject.name}",
        lead=_lead(found),
        findings=found.findings,
        charts=charts(found, queries.pop("rejected_scores"), divided),
        numbers=number_rows(found.to_json()["numbers"]),
        alternatives=_alternatives(found.alternatives),
        flags=dict(zip(flags.codes, flags.counts(chosen.rows), strict=True)),
        queries=queries if len(chosen.rows) else None,
        slices={each.by: {"names": each.values, "of": each.labels[chosen.rows].tolist()} for each in divided},
        slice_rows=_slice_rows(found.measured.numbers.get("slices", [])),
        about_queries=_about(subject, len(chosen.rows), int(queries["length"]), pictures),
        command=f"hardneg calibrate {name} judgements.csv",
        drawn=drawn,
        drawn_command="" if drawn is None else f"hardneg calibrate {name} {shlex.quote(drawn.saved)}",
        provenance=provenance(run),
        digest=fingerprint(run.info["fingerprints"]),
    )


def _lead(found: Diagnosis) -> str:
    subject = found.subject
    counts = {s: sum(f.severity == s for f in found.findings) for s in ("error", "warning", "info")}
    problems = ", ".join(f"{n} {name}{'s' if n != 1 and name != 'info' else ''}" for name, n in counts.items() if n)
    lead = f"{len(subject.pairs):,} queries, {len(subject.pairs.document_ids):,} documents, "
    return lead + f"{int(subject.real.sum()):,} negatives. {problems or 'No problems found'}."


def _about(subject: Subject, shown: int, length: int, pictures: Thumbnails) -> str:
    """What the table of queries shows."""
    total = len(subject.pairs)
    which = (
        "All queries."
        if shown == total
        else f"{shown:,} of {total:,} queries: those that findings concern, the worst first, and some drawn at random."
    )
    sides = [each.pictures for each in (subject.pairs.queries, subject.pairs.documents)]
    seen = "pictures" if all(sides) else "pictures and texts" if any(sides) else "texts"
    cut = "" if all(sides) else f", cut after {length:,} characters"
    opened = f"Open one to see its {seen}{cut}, and up to 14 of its candidates."
    return " ".join(filter(None, (which, opened, pictures.note())))


def _alternatives(tried: Sequence[Alternative]) -> list[tuple[str, ...]]:
    """The table of what fixes would do."""
    if not tried:
        return []
    head = (
        "added filters",
        "false share",
        "mean score",
        "above positive",
        "still teach",
        "near one another",
        "queries left short",
        "command",
    )
    rows: list[tuple[str, ...]] = [
        (
            " ".join(each.added) or (f"none: sampler {each.sampler}" if each.sampler else "none: the run as it is"),
            "not known" if each.false_share is None else f"{each.false_share:.1%}",
            f"{each.mean_score:.3f}",
            f"{each.above_positive:.1%}",
            "not known" if each.teaching is None else f"{each.teaching:.1%}",
            "not known" if each.near_duplicates is None else f"{each.near_duplicates:.1%}",
            f"{each.short:.1%}",
            each.command,
        )
        for each in tried
    ]
    return [head, *rows]


def _slice_rows(slices: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table of slices, with the intervals of their measures."""
    names = [name for name in SLICE_MEASURES if any(name in each for each in slices)]
    head = ("slice", "queries", *(SLICE_MEASURES[name] for name in names), "worst in")
    rows: list[tuple[str, ...]] = [
        (
            f"{each['by']}: {each['value']}",
            f"{each['queries']:,}",
            *(_share(each.get(name)) for name in names),
            SLICE_MEASURES.get(each["worst"] or "", ""),
        )
        for each in slices[:_SLICES]
    ]
    return [head, *rows] if rows else []


def _share(measured: dict[str, float] | None) -> str:
    if measured is None:
        return "-"
    return f"{measured['value']:.1%} ({measured['low']:.1%} to {measured['high']:.1%})"


def write_comparison(found: Comparison, path: str | Path) -> None:
    """Write the report of a comparison to an HTML file. The file is written completely or not at all.

    Args:
        found: the comparison.
        path: the path of the file.

    Raises:
        MissingDependencyError: the extra `report` is not installed.
    """
    before, after = found.before.subject, found.after.subject
    changes = [
        replace(finding, text=f"{change}: {finding.text}", fix="" if change == "gone" else finding.fix)
        for change, finding in found.changes
    ]
    lead = f"{found.overlap.value:.0%} of the negatives are in both runs. " + (
        "" if changes else "No finding has changed."
    )
    page = Page(
        title=f"{after.name} compared with {before.name}",
        lead=lead,
        findings=changes,
        charts=comparison_charts(found),
        numbers=comparison_rows(found.to_json()),
        columns=("number", "before", "after"),
        heading="What changed",
    )
    write_page(page, path)


def write_page(page: Page, path: str | Path) -> None:
    """Write a page to an HTML file. The file is written completely or not at all."""
    check_replaceable(Path(path), "report", _SIGN)
    text = render(page)
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
    script = "".join(home.joinpath(name).read_text("utf-8") for name in _SCRIPTS)
    style = home.joinpath("report.css").read_text("utf-8")
    # A `<` in a text could end the script element that holds the data, so write it as a JSON escape.
    data = json.dumps(_data(page), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    policy += f"script-src {_hashed(library)} {_hashed(script)}"
    template = Environment(autoescape=True).from_string(home.joinpath("report.html.j2").read_text("utf-8"))
    parts = {"policy": policy, "data": data, "library": library, "script": script, "style": style}
    return template.render(page=page, **{name: Markup(text) for name, text in parts.items()})


def _data(page: Page) -> dict[str, Any]:
    """What the scripts of the page read."""
    shown: dict[str, Any] = {"charts": page.charts, "digest": page.digest, "queries": None, "slices": page.slices}
    shown["findings"] = [{"code": code, "shown": 0} for code in page.flags]
    shown["drawn"] = None if page.drawn is None else {**asdict(page.drawn), "saved": page.drawn.saved}
    if page.queries is not None:
        shown |= page.queries
        for each in page.queries["queries"]["flags"]:
            for place in each:
                shown["findings"][place]["shown"] += 1
    return shown


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

"""The command `hardneg check-pairs`."""

from __future__ import annotations

from pathlib import Path

import click

from .main import print_json
from .plain import plain, quoted
from .show import progress_bars


@click.command()
@click.argument("run")
@click.option(
    "--top", type=click.IntRange(1), metavar="K",
    help="A positive should be among the K nearest documents of its query.  [default: 20, or the depth of RUN if that is less]",
)  # fmt: skip
@click.option(
    "--evidence", multiple=True, metavar="F.csv",
    help="Graded judgements of candidates and of positives ('hardneg judge --of positives'); repeat it for several files.",
)  # fmt: skip
@click.option("--out", metavar="F.txt", type=click.Path(path_type=Path), help="Write the ids of the doubtful queries.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as one JSON object on stdout.")
def check_pairs(run: str, top: int | None, evidence: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Count the known pairs of RUN that are doubtful.

    A pair is doubtful if the positive is not among the --top nearest documents of its query, or if a judge grades a
    candidate above it. A hard query is doubtful by the first sign, too: look at some before you leave them out.

    \b
    Examples:
      hardneg check-pairs run --top 20 --out doubtful.txt
      hardneg select run --leave-out doubtful.txt --out run2
    """
    from hardneg.errors import DataError
    from hardneg.false_negatives.consistency import TOP
    from hardneg.false_negatives.consistency import check_pairs as run_check
    from hardneg.mining.run import Run
    from hardneg.storage.files import atomic_path
    from hardneg.storage.outputs import check_place

    if out is not None:
        check_place(out)
        if out.exists():
            raise DataError(f"{out} exists: choose another --out")
    opened = Run(run)
    with progress_bars() as progress:
        found = run_check(opened, top=top, evidence=evidence, progress=progress)
    value = found.to_json(opened)
    if top is None and found.top < TOP:
        click.echo(f"note: --top is {found.top}, not {TOP}: {plain(run)} is no deeper", err=True)
    if out is not None:
        ids = opened.pairs().query_ids
        lines = [ids[int(row)].as_py() for row in found.doubtful]
        if any("\n" in each or "\r" in each for each in lines):
            raise DataError("an id of a doubtful query holds a line break: it cannot stand in a list of lines")
        with atomic_path(out) as temporary:
            temporary.write_text("".join(f"{each}\n" for each in lines), "utf-8")
    if as_json:
        print_json(value)
        return
    click.echo(
        f"{value['queries_with_positives']:,} queries with positives; {value['positive_not_found']:,} without one among their "
        f"{found.top} nearest documents: {plain(', '.join(value['positive_not_found_queries'][:10])) or 'none'}"
    )
    if evidence:
        click.echo(
            f"{value['queries_judged']:,} queries with graded candidates and positives; {value['better_candidate']:,} with a better "
            f"candidate: {plain(', '.join(value['better_candidate_queries'][:10])) or 'none'}"
        )
    if out is not None and value["doubtful"]:
        click.echo(f"next: hardneg select {quoted(run)} --leave-out {quoted(out)} --out RUN2")

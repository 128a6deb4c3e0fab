"""hardneg judge"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .main import print_json
from .show import progress_bars


@click.command()
@click.argument("run")
@click.option("--out", required=True, metavar="F.csv", type=click.Path(path_type=Path), help="The file to write.")
@click.option("--sample", type=click.IntRange(1), default=300, show_default=True, help="Number of pairs to draw.")
@click.option(
    "--alpha", type=float, default=0.05, show_default=True, help="Share of false negatives that you want to guarantee."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--posterior", metavar="FILE", help="The posterior whose threshold you want to certify.  [default: learned here]"
)
@click.option("--judged", metavar="F.csv", help="A smaller sample that was judged before. Its judgements are copied.")
@click.option(
    "--cross-encoder", metavar="NAME_OR_PATH", help="Let this cross-encoder judge; also module:PKG.MOD:FACTORY."
)
@click.option(
    "--cut",
    type=float,
    default=0.5,
    show_default=True,
    help="Score above which the cross-encoder calls a pair relevant.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file.")
@click.option("--json", "as_json", is_flag=True, help="Print what was drawn as one JSON object on stdout.")
def judge(run: str, out: Path, posterior: str | None, overwrite: bool, as_json: bool, **given: Any) -> None:
    """Draw candidates of RUN to be judged, and write them as a CSV file with an empty column 'relevant'.

    Write 1 (relevant, so a false negative) or 0 in that column, and give the file to 'hardneg calibrate'. Three quarters
    of the pairs (part 'hold-out') are for the guarantee, the others for learning. A larger --sample with the same
    options contains the smaller one.

    \b
    Examples:
      hardneg judge run --sample 300 --out f.csv
      hardneg judge run --sample 600 --judged f.csv --out f2.csv
      hardneg judge run --sample 5000 --cross-encoder cross-encoder/ms-marco-MiniLM-L6-v2 --out f.csv
    """
    from hardneg.errors import DataError, UsageError
    from hardneg.false_negatives.calibrate import judge as run_judge
    from hardneg.false_negatives.model import Posterior

    if given["judged"] and given["cross_encoder"]:
        raise UsageError("--judged and --cross-encoder exclude each other")
    if out.exists() and not overwrite:
        raise DataError(f"{out} exists: it may hold judgements. Choose another --out, or replace it with --overwrite")
    with progress_bars() as progress:
        drawn = run_judge(
            run, out, posterior=None if posterior is None else Posterior.load(posterior), progress=progress, **given
        )
    value = {"file": str(out), "pairs": len(drawn.place), "held_out": int(drawn.held_out.sum())}
    if as_json:
        print_json(value)
        return
    click.echo(f"{value['pairs']:,} pairs in {out}, {value['held_out']:,} of them held out for the guarantee")
    done = "judged by the cross-encoder" if given["cross_encoder"] else "write 1 (relevant) or 0 into 'relevant'"
    click.echo(f"next: {done}, then: hardneg calibrate {run} {out} --alpha {given['alpha']:g}")

"""hardneg calibrate"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .main import print_json
from .show import print_posterior, progress_bars


@click.command()
@click.argument("run")
@click.argument("judgements", required=False, metavar="[F.csv]")
@click.option(
    "--alpha", type=float, default=0.05, show_default=True, help="Largest share of false negatives that you allow."
)
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Confidence of the guarantee.")
@click.option(
    "--learn",
    default="auto",
    show_default=True,
    help="What to learn from: auto · known (the positives alone) · hidden (hide one of several positives and look for it) · "
    "groups (they are the truth) · judged (all judgements, without a guarantee)",
)
@click.option(
    "--feature",
    "features",
    multiple=True,
    metavar="NAME",
    help="A feature that --learn judged or groups uses. Repeatable.",
)
@click.option(
    "--posterior", metavar="FILE", help="Certify the threshold of this posterior. Draw the pairs with 'hardneg judge'."
)
@click.option("--uncertified", is_flag=True, help="Write a posterior even if no threshold can be certified.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="[default: RUN/posterior.json]")
@click.option("--json", "as_json", is_flag=True, help="Print the posterior as JSON on stdout.")
def calibrate(
    run: str,
    judgements: str | None,
    features: tuple[str, ...],
    posterior: str | None,
    out: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Learn how likely each candidate of RUN is a false negative, and choose the threshold for rejecting it.

    Without judgements, the command learns from the known positives alone and sets the threshold where it expects a share
    ALPHA of false negatives. With a file of judgements (see 'hardneg judge'), it certifies the threshold or refuses to.

    \b
    Examples:
      hardneg calibrate run
      hardneg calibrate run f.csv --alpha 0.05 --confidence 0.95
      hardneg select run --filter posterior:run/posterior.json --out run2
    """
    from hardneg.false_negatives.calibrate import calibrate as run_calibrate
    from hardneg.false_negatives.model import Posterior

    with progress_bars() as progress:
        made = run_calibrate(
            run,
            judgements,
            features=features or None,
            posterior=None if posterior is None else Posterior.load(posterior),
            progress=progress,
            **given,
        )
    path = Path(run) / "posterior.json" if out is None else out
    made.save(path)
    if as_json:
        print_json(made.to_json())
    else:
        print_posterior(made.to_json(), run, str(path))

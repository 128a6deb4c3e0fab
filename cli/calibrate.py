"""The command `hardneg calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hardneg import renamed
from hardneg.errors import RunError, UsageError

from .main import print_json
from .options import SHARE, Finite
from .show import progress_bars
from .show_posterior import print_posterior


def feature_names(ctx: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of features, with their new names. A note on stderr names each that was given by its old name."""
    for name in names:
        if name in renamed.FEATURES:
            new = renamed.FEATURES[name]
            click.echo(
                f"note: the feature {name!r} is called {new!r} now; version 0.3 will no longer know the old name",
                err=True,
            )
    return tuple(renamed.FEATURES.get(name, name) for name in names)


@click.command()
@click.argument("run")
@click.argument("judgements", required=False, metavar="[F.csv]")
@click.option("--judgements", "named", metavar="F.csv", help="The same as F.csv as an argument.")
@click.option(
    "--out", metavar="FILE", type=click.Path(path_type=Path), help="File to write.  [default: RUN/posterior.json]"
)
@click.option(
    "--alpha",
    type=SHARE,
    metavar="SHARE",
    help="Share of false negatives that you allow among the negatives.  [default: that of F.csv, or 0.05]",
)
@click.option(
    "--confidence",
    type=Finite(0.5, 1, max_open=True),
    default=0.95,
    show_default=True,
    metavar="X",
    help="Confidence with which the guarantee holds. Used with F.csv.",
)
@click.option(
    "--learn",
    default="auto",
    show_default=True,
    metavar="HOW",
    help="What to learn from: known (the known positives) · hidden (for queries with several positives, one that is "
    "hidden) · groups (the groups of the dataset) · judged (the judgements in F.csv, without a guarantee) · auto (judged if "
    "F.csv was saved by a report and not drawn by 'hardneg judge', otherwise hidden or known).",
)
@click.option(
    "--feature",
    "features",
    multiple=True,
    callback=feature_names,
    metavar="NAME",
    help="Use this feature with --learn judged or groups. Repeat the option for several.  [default: chosen by "
    "cross-validation]",
)
@click.option(
    "--posterior",
    metavar="FILE",
    help="Certify the threshold of this posterior instead of learning one. F.csv must be drawn for it ('hardneg judge "
    "--posterior').",
)
@click.option(
    "--predictions",
    metavar="M.csv",
    help="Many judgements of a model ('hardneg judge --judge'), which those of a person in F.csv correct.",
)
@click.option(
    "--trust-judge",
    is_flag=True,
    help="Take the word of the model that filled F.csv for the truth. The guarantee is then about what it says.",
)
@click.option(
    "--uncertified", is_flag=True, help="If no threshold can be certified, write a posterior without a guarantee."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Seed of all random choices."
)
@click.option("--json", "as_json", is_flag=True, help="Print the posterior as one JSON object on stdout.")
def calibrate(
    run: str,
    judgements: str | None,
    named: str | None,
    features: tuple[str, ...],
    posterior: str | None,
    out: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Learn how likely each candidate of RUN is a false negative, and choose a threshold for rejecting candidates.

    The command writes a file, called a posterior, for the filter 'posterior'.

    Without F.csv, it learns from the known positives and chooses the threshold at which it expects a share of --alpha
    false negatives. This is an estimate.

    With F.csv, a file of judgements from 'hardneg judge', it certifies a threshold: with --confidence, at most a share
    of --alpha of the negatives is false. If no threshold can be certified, it says whether more judgements would help.

    What you judged in a report ('hardneg diagnose --html') was not drawn at random: it teaches, and certifies nothing.

    \b
    Examples:
      hardneg calibrate run
      hardneg calibrate run f.csv --alpha 0.05 --confidence 0.95
      hardneg calibrate run judgements.csv
      hardneg calibrate run person.csv --predictions model.csv
      hardneg select run --filter posterior:run/posterior.json --out run2
    """
    from hardneg.false_negatives.calibrate import calibrate as run_calibrate
    from hardneg.false_negatives.model import Posterior, check_savable

    if named is not None and judgements is not None:
        raise UsageError("give the judgements once: as an argument or with --judgements")
    judgements = judgements if named is None else named
    check_savable(features)
    with progress_bars() as progress:
        learned = run_calibrate(
            run,
            judgements,
            features=features or None,
            posterior=None if posterior is None else Posterior.load(posterior),
            progress=progress,
            **given,
        )
    path = Path(run) / "posterior.json" if out is None else out
    if out is None and path.is_symlink():
        raise RunError(
            f"{path} is a symbolic link, and hardneg writes inside its own folder only: name the file with --out"
        )
    learned.save(path)
    if as_json:
        print_json(learned.to_json())
    else:
        print_posterior(learned.to_json(), run, str(path))

"""The command `hardneg judge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .judge_options import asked_options, judge_options
from .main import print_json
from .options import SEED, SHARE
from .plain import plain, quoted
from .reading import typed_options
from .show import progress_bars


@click.command()
@click.argument("run")
@click.option("--out", required=True, metavar="F.csv", type=click.Path(path_type=Path), help="CSV file to write.")
@click.option("--overwrite", is_flag=True, help="Replace the file at --out, with the judgements in it.")
@click.option(
    "--sample", type=click.IntRange(1), default=300, show_default=True, metavar="N", help="Number of pairs to draw."
)
@click.option(
    "--alpha",
    type=SHARE,
    default=0.05,
    show_default=True,
    metavar="SHARE",
    help="Share of false negatives that you want to guarantee. Give the same to 'hardneg calibrate'.",
)
@click.option(
    "--posterior",
    metavar="FILE",
    help="Posterior whose threshold you want to certify.  [default: one learned from the known positives]",
)
@click.option(
    "--judged",
    metavar="F.csv",
    help="File that you have judged already, with a smaller sample. Its judgements are copied.",
)
@click.option(
    "--cross-encoder",
    metavar="NAME_OR_PATH",
    help="Let this cross-encoder judge the pairs: a sentence-transformers model, or module:PKG.MOD:FACTORY (your own).",
)
@click.option(
    "--cut",
    type=float,
    default=0.5,
    show_default=True,
    metavar="X",
    help="Score above which the cross-encoder judges a pair as relevant.",
)
@click.option(
    "--judge",
    "judge_spec",
    metavar="SPEC",
    help="Who judges: person (you, here in the terminal; a file at --out that is not finished is gone on with), or a model: "
    "openai:MODEL (any endpoint of that kind) · cross-encoder:NAME. What a model says is not the truth: see 'hardneg calibrate "
    "--predictions'.  [default: you fill the file]",
)
@click.option("--then", metavar="SPEC", help="Second, better judge, for the pairs where its answer would change most.")
@click.option(
    "--then-pairs",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    metavar="N",
    help="Pairs for the second judge.",
)
@click.option(
    "--of",
    type=click.Choice(["sample", "negatives", "positives"]),
    default="sample",
    show_default=True,
    help="What to judge: a sample for a guarantee, or the negatives of RUN, the most suspicious first, for 'hardneg select "
    "--relabel' · known positives, for 'hardneg check-pairs'.",
)
@click.option(
    "--predictions",
    metavar="F.csv",
    help="File that a model filled: draw from it the pairs that a person should check, more where its answers vary.",
)
@judge_options
@click.option("--seed", type=SEED, default=0, show_default=True, metavar="N", help="Seed of the sample.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers of pairs as one JSON object on stdout.")
def judge(
    run: str, out: Path, posterior: str | None, overwrite: bool, as_json: bool, judge_spec: str | None, **given: Any
) -> None:
    """Draw candidates of RUN, for you or a model to judge, and write them to a CSV file.

    Write 1 (relevant, so a false negative) or 0 (not relevant) into the column 'relevant', and give the file to
    'hardneg calibrate'. Three quarters of the pairs (part 'hold-out') are for the guarantee, the others for learning.

    In the file, an id or a text that a spreadsheet would take for a formula (one that starts with = + - @, a tab or a
    carriage return) has a single quote in front. 'hardneg calibrate' takes the quote off again.

    A larger --sample contains the smaller one if all other options are the same, so you can add judgements later.

    \b
    Examples:
      hardneg judge run --sample 300 --out f.csv
      hardneg judge run --sample 300 --out f.csv --judge person
      hardneg judge run --sample 600 --judged f.csv --out f2.csv
      hardneg judge run --sample 5000 --judge cross-encoder:cross-encoder/ms-marco-MiniLM-L6-v2 --out m.csv
      hardneg judge run --sample 5000 --judge openai:gpt-4.1-mini --price 0.4,1.6 --budget 5 --out m.csv
      hardneg judge run --predictions m.csv --sample 200 --out p.csv
      hardneg judge run --of negatives --judge openai:MODEL --judge-url http://localhost:8000/v1 --out e.csv
    """
    from hardneg.errors import DataError, UsageError
    from hardneg.false_negatives.judge import Asking
    from hardneg.false_negatives.judge import judge as run_judge
    from hardneg.false_negatives.model import Posterior
    from hardneg.storage.files import is_special

    from .ask import check_terminal

    out = Path("/dev/stdout") if str(out) == "-" else out
    for name in ("judged", "judge"):
        if given["cross_encoder"] and (judge_spec if name == "judge" else given[name]):
            raise UsageError(f"--{name} and --cross-encoder exclude each other")
    person = judge_spec == "person"
    if person:
        check_terminal(out)
    elif out.exists() and not is_special(out) and not overwrite:
        raise DataError(f"{out} exists: it may hold judgements. Choose another --out, or replace it with --overwrite")
    asking = Asking(
        judge=None if person else judge_spec, options=asked_options(given, quiet=as_json),
        **{name: given.pop(name) for name in ("then", "then_pairs", "of", "predictions")},
    )  # fmt: skip
    if person and out.exists() and not overwrite:
        return _ask(run, out, given, asking)
    given["asking"] = asking
    with progress_bars() as progress:
        drawn = run_judge(
            run, out, posterior=None if posterior is None else Posterior.load(posterior), progress=progress, **given
        )
    value: dict[str, Any] = {"file": str(out), "pairs": len(drawn.place), "held_out": int(drawn.held_out.sum())}
    value |= {"judges": drawn.asked} if drawn.asked else {}
    if as_json:
        return print_json(value)
    _say(out, given, drawn, value)
    if person:
        _ask(run, out, given, asking)
    elif not is_special(out):
        _next(run, out, given, asking, value["pairs"])


def _ask(run: str, out: Path, given: dict[str, Any], asking: Any) -> None:
    """Ask a person for the pairs of the file, and say how to go on."""
    from .ask import ask

    judged, left = ask(out)
    click.echo(f"{judged:,} pairs judged now, {left:,} left. All answers are in {plain(out)}")
    if left:
        click.echo(
            f"to go on: hardneg judge {quoted(run)} --out {quoted(out)} --judge person"
            + _kept("of", "alpha", "predictions", "posterior")
        )
    else:
        _next(run, out, given, asking, judged, answered=True)


def _say(out: Path, given: dict[str, Any], drawn: Any, value: dict[str, Any]) -> None:
    """Say what was written, on stderr if the file itself goes to a stream."""
    from hardneg.storage.files import is_special

    to_stream = is_special(out)
    latest = drawn.look == drawn.look.max(initial=1)
    extended = given["judged"] is not None and int(drawn.look.max(initial=1)) > 1
    click.echo(
        f"wrote {value['pairs']:,} pairs to {plain(out)}, {value['held_out']:,} of them held out for the guarantee",
        err=to_stream,
    )
    if value["pairs"] < given["sample"]:
        click.echo(
            f"there are no more: --sample {given['sample']:,} asks for more than {_all_of(given['asking'])}",
            err=to_stream,
        )
    if given["judged"] is not None:
        added = f"{int(latest.sum()):,} of them new" if extended else "none of them new: raise --sample"
        click.echo(f"{added}; {drawn.left_out:,} judged before are not among them", err=to_stream)
    for name, counts in drawn.asked.items():
        said = ", ".join(f"{key} {count:,.6g}" for key, count in counts.items() if count)
        click.echo(f"{plain(name)}: {plain(said)}", err=to_stream)


def _all_of(asking: Any) -> str:
    """What pairs are drawn of, in words."""
    if asking.predictions is not None:
        return f"the model judged in {plain(asking.predictions)}"
    return {"negatives": "the negatives of the run", "positives": "the known positives of the run"}.get(
        asking.of, "the candidates of the run that could be judged"
    )


def _next(run: str, out: Path, given: dict[str, Any], asking: Any, pairs: int, answered: bool = False) -> None:
    """Say what to type next."""
    file, alpha = quoted(out), f"--alpha {given['alpha']:g}"
    if asking.of == "positives":
        click.echo(f"next: hardneg check-pairs {quoted(run)} --evidence {file} --evidence NEGATIVES.csv")
        return
    if asking.of == "negatives":
        todo = "" if asking.judge or answered else "write 1 (relevant) or 0 into the column 'relevant', then: "
        click.echo(f"next: {todo}hardneg select {quoted(run)} --relabel drop --evidence {file} --out RUN2")
        return
    if asking.judge is not None:
        click.echo(
            f"next, as a model errs: hardneg judge {quoted(run)} --predictions {file} --sample {min(200, pairs)} "
            f"{alpha}{_kept('posterior')} --out P.csv, for a person"
        )
        return
    more = "" if asking.predictions is None else f" --predictions {quoted(asking.predictions)}"
    todo = "" if given["cross_encoder"] or answered else "write 1 (relevant) or 0 into the column 'relevant', then: "
    click.echo(f"next: {todo}hardneg calibrate {quoted(run)} {file} {alpha}{more}{_kept('posterior')}")


def _kept(*names: str) -> str:
    """Options of this command that the next one has to have as well, if they were given."""
    context = click.get_current_context()
    return "".join(f" {quoted(word)}" for word in typed_options(context, context.params, names))

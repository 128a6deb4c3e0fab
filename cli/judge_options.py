"""The options of models that judge: where they are, how they are asked, and what that may cost."""

from __future__ import annotations

import sys
from typing import Any

import click

from .options import Command, batch_size_option, with_options
from .plain import plain

_OPTIONS = (
    click.option(
        "--judge-url",
        metavar="URL",
        help="Endpoint of openai:MODEL, such as http://localhost:8000/v1.  [default: $OPENAI_BASE_URL, or that of OpenAI]",
    ),
    click.option(
        "--judge-key",
        metavar="VARIABLE",
        default="OPENAI_API_KEY",
        show_default=True,
        help="Environment variable that holds the key. The key itself is never an option.",
    ),
    click.option("--allow-http", is_flag=True, help="Send key and texts to another machine without encryption."),
    click.option(
        "--concurrency",
        type=click.IntRange(1),
        default=8,
        show_default=True,
        metavar="N",
        help="Most requests at once.",
    ),
    click.option(
        "--pairs-per-request",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        metavar="N",
        help="Pairs that one request asks about: more are cheaper, and less exact.",
    ),
    click.option(
        "--price",
        metavar="IN,OUT",
        help="Prices of a million tokens of the prompt and of the answer, for the estimate.",
    ),
    click.option(
        "--budget",
        metavar="AMOUNT",
        help="Where to stop: money (needs --price), or tokens or requests: 2.50, 200000tokens, 500requests.",
    ),
    click.option("--yes", is_flag=True, help="Do not ask whether the estimated cost is all right."),
    click.option(
        "--judge-cache",
        metavar="DIR",
        help="Folder of the answers, so that nothing is paid for twice.  [default: hardneg/judgements in your cache folder]",
    ),
    click.option(
        "--relevant-from",
        type=float,
        metavar="GRADE",
        help="Grade of openai:MODEL, 1 to 3, from which a document is relevant.  [default: 2]",
    ),
    click.option("--device", metavar="NAME", help="Device of a cross-encoder, such as cpu or cuda."),
    batch_size_option("Pairs that a cross-encoder scores at once."),
)


def judge_options(command: Command) -> Command:
    """Add the options of models that judge to a command."""
    return with_options(_OPTIONS, command)


def asked_options(given: dict[str, Any], quiet: bool) -> Any:
    """The `JudgeOptions` of these options, which are taken out of `given`."""
    from hardneg.judges.base import JudgeOptions
    from hardneg.judges.cost import Budget, Prices

    price, budget, yes = (given.pop(name) for name in ("price", "budget", "yes"))
    return JudgeOptions(
        url=given.pop("judge_url"),
        key_variable=given.pop("judge_key"),
        cache=given.pop("judge_cache"),
        cut=given.pop("relevant_from"),
        prices=None if price is None else Prices.parse(price),
        budget=None if budget is None else Budget.parse(budget),
        confirm=None if yes else _confirm,
        **{
            name: given.pop(name) for name in ("allow_http", "concurrency", "pairs_per_request", "device", "batch_size")
        },
    )


def _confirm(estimate: Any) -> bool:
    """Show the estimate, and ask on a terminal."""
    from hardneg.errors import UsageError

    click.echo(f"the judge: {plain(str(estimate))}", err=True)
    if not sys.stdin.isatty():
        raise UsageError(
            "nobody is here to say whether that is all right: add --yes and --budget. A budget of requests is never exceeded, "
            "one of money or tokens only if a request takes more than was set aside for it"
        )
    return click.confirm("ask it?", default=False, err=True)

"""Options and help texts that several commands share, and the old names of options."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import click

from hardneg import renamed

Command = Callable[..., Any]


def _dashed(name: str) -> str:
    """The name of the option for a field, such as `--lr-scheduler` for `lr_scheduler`."""
    return "--" + name.replace("_", "-")


ENCODER_HELP = (
    "hashed (built in, needs no download) · st:NAME_OR_PATH (a sentence-transformers model; with ,backend=onnx or "
    ",backend=openvino another back end) · open_clip:MODEL,pretrained=TAG (texts and pictures) · glyphs (for "
    "builtin:glyphs) · hashed:FOLDER, glyphs:FOLDER and open_clip:FOLDER (saved by 'hardneg train') · "
    "module:PKG.MOD:FACTORY (your own)"
)
CANDIDATES_HELP = (
    "Where candidates come from; repeat the option for several: dense (the encoder) · bm25:k1=1.5,b=0.75,stemmer=english (needs "
    "hardneg[bm25]) · trec:FILE (a TREC run) · encoder:st:NAME (a further encoder) · given (the negatives in SOURCE). Each takes "
    "label=NAME, the name of its columns in the run.  [default: dense]"
)
FILTER_HELP = (
    "Reject candidates with this filter; all filters are listed below. Repeat the option for several filters: they "
    "apply in order."
)
NO_DEFAULT_FILTERS_HELP = (
    "Switch off the filters 'empty', 'duplicate:text' and 'distinct'. The filter 'known' stays on."
)
FORCE_HELP = (
    "Use a posterior even if it was learned with another encoder, and given vectors even if positives score no better than "
    "random documents."
)
FILTERS_AND_SAMPLERS = """
\b
Filters, in the form in which --filter takes them:
  known                         (always on, applies first) rejects the known
                                positives of the query
  empty                         (on by default) rejects documents without text
  duplicate:text                (on by default) rejects documents with the same
                                text as a positive or the query
  duplicate:near=0.95           rejects documents with a score of 0.95 or more
                                with a positive or the query
  distinct                      (on by default) rejects documents with the same
                                text as a nearer candidate
  group                         rejects documents of the group of the query or
                                of its positives
  rank:min=10,max=100           keeps these ranks; rank 1 is the nearest document
  score:min=0.2,max=0.8         keeps these scores
  margin:absolute=0.05          keeps scores at least 0.05 below the score of the
                                positive
  margin:relative=0.05          keeps scores at least 5 % below the score of the
                                positive
  answer:column=answers         rejects documents that hold an answer of the query
                                (answer:FILE,column=C: from another file than SOURCE)
  shared-neighbors:max=0.25     rejects documents that share many nearest
                                neighbors with the query and its positives
  guide:st:NAME,margin=0        keeps documents that another encoder also scores
                                below the positive
  cross-encoder:NAME,max=0.3    keeps documents that a cross-encoder scores at
                                most 0.3
  teacher:margin=0.5            (only in 'hardneg select') keeps documents that
                                the teacher of 'hardneg score' scores at least
                                0.5 below the positive's own score
  posterior:FILE,threshold=0.1  rejects documents that are false negatives with a
                                probability above 0.1 ('hardneg calibrate'
                                writes FILE and chooses a threshold)
  posterior:learned             (only in 'hardneg train') learns such a posterior
                                when the training mines for the first time
A document that was judged not relevant to the query is rejected by 'empty',
'duplicate' and 'distinct' only: the other filters guess at relevance.

\b
Samplers, with their default values:
  top                           takes the nearest candidates
  uniform                       draws all candidates equally often
  softmax:temperature=0.05      draws nearer candidates more often, in proportion
                                to exp(score / temperature)
  simans:a=100,b=0              draws candidates that score like the positive
                                most often (SimANS, arXiv 2210.11773)
"""


class Finite(click.FloatRange):
    """A number within limits; unlike click's own type, it accepts neither NaN nor infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number", param, ctx)
        return found


SHARE = Finite(0, 1, min_open=True, max_open=True)
THREADS = click.IntRange(1, 1024)  # hardneg.index.vectors.MOST_THREADS, which is slow to load
SEED = click.IntRange(0, 2**63 - 1)
SEED_OF_MODELS = click.IntRange(0, 2**32 - 1)

_ENCODING = (
    click.option(
        "--encoder", default="hashed", show_default=True, metavar="SPEC",
        help=f"Encoder that turns texts into vectors: {ENCODER_HELP}.",
    ),
    click.option(
        "--query-embeddings", metavar="F",
        help="Vectors of the queries instead of an encoder: .npy in the order of SOURCE (or a pattern of such files), or .npz or "
        ".parquet with ids. May be a URL. Needs --corpus-embeddings.",
    ),
    click.option(
        "--corpus-embeddings", metavar="F",
        help="Vectors of the documents, likewise. Needs --query-embeddings.",
    ),
    click.option(
        "--query-prompt", metavar="TEXT",
        help="Text that is put before each query.  [default: what the model has itself for queries]",
    ),
    click.option("--document-prompt", metavar="TEXT", help="Text that is put before each document.  [default: likewise]"),
    click.option(
        "--batch-size", type=click.IntRange(1), metavar="N",
        help="Texts that an st: encoder encodes at once.  [default: as many as a budget of tokens allows; a GPU's is measured]",
    ),
    click.option(
        "--device", metavar="NAME",
        help="Device of an st: encoder, such as cpu or cuda.  [default: a GPU if torch finds one]",
    ),
    click.option(
        "--devices", metavar="LIST",
        help="Devices that encode at the same time, a process on each: cuda:0,cuda:1 · cuda (every GPU) · cpu:2. One that dies "
        "loses nothing.",
    ),
    click.option(
        "--encoder-precision", default="auto", show_default=True, metavar="NAME",
        help="Number format that an st: encoder multiplies in: float32 · bfloat16 · float16 · auto (bfloat16 where a short "
        "measurement finds it faster; 'hardneg doctor' shows it).",
    ),
)  # fmt: skip
_DIAGNOSING = (
    click.option("--html", metavar="F.html", help="Also write a report, as one HTML file that needs no network."),
    click.option(
        "--temperature", type=Finite(0, min_open=True), default=0.05, show_default=True, metavar="X",
        help="Temperature of the loss that the negatives will be used in.",
    ),
    click.option(
        "--thresholds", metavar="F.json",
        help="JSON file that changes the limits of findings: an object with names and values of "
        "hardneg.diagnostics.Thresholds.",
    ),
    click.option(
        "--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N",
        help="Seed of the samples that are measured.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout."),
)  # fmt: skip


def batch_size_option(what: str) -> Callable[[Command], Command]:
    """The option --batch-size of a command with one model; `what` is its help."""
    return click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, metavar="N", help=what)


class Sectioned(click.Command):
    """A command whose help lists the options in sections.

    Args:
        sections: the heading of each section, by the name of its first option.
    """

    def __init__(self, *args: Any, sections: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        heading = "Options"
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                heading = self.sections.get(parameter.name or "", heading)
                sections.setdefault(heading, []).append(record)
        width = min(30, max(len(name) for records in sections.values() for name, _ in records))
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), text) for name, text in records])


class Renamed(Sectioned):
    """A command that still accepts the option names of version 0.1, with a note on stderr."""

    OLD: ClassVar[dict[str, str]] = {"--views": "--self-supervised"}
    OLD.update({_dashed(old): _dashed(new) for old, new in renamed.TRAIN_OPTIONS.items()})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {name for parameter in self.params for name in parameter.opts}
        return super().parse_args(ctx, [self._new(argument, known) for argument in args])

    def _new(self, argument: str, known: set[str]) -> str:
        """The argument with the new name of its option; `known` are the names that the command has."""
        name, equals, value = argument.partition("=")
        new = self.OLD.get(name)
        if new is not None and name not in known and new in known:
            click.echo(f"note: {name} is called {new} now; version 0.3 will no longer know the old name", err=True)
            return new + equals + value
        return argument


def filter_spec(ctx: click.Context, parameter: click.Parameter, specs: tuple[str, ...]) -> tuple[str, ...]:
    """The specs of filters with their new names. A note on stderr names each filter that was given by an old name."""
    for spec in specs:
        new = renamed.filter_spec(spec)
        if new != spec:
            click.echo(
                f"note: the filter {spec!r} is written {new!r} now; version 0.3 will no longer know the old name",
                err=True,
            )
    return tuple(map(renamed.filter_spec, specs))


def encoding(command: Command) -> Command:
    """Add the options that say how texts become vectors, or which files hold the vectors."""
    return with_options(_ENCODING, command)


def diagnosing(command: Command) -> Command:
    """Add the options of the commands that diagnose runs."""
    return with_options(_DIAGNOSING, command)


def with_options(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    """Add options to a command, in this order."""
    for option in reversed(options):
        command = option(command)
    return command

"""The options that say how SOURCE is read, for all commands that read a dataset."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import Command, with_options
from .plain import plain

if TYPE_CHECKING:
    from hardneg.data.options import ReadOptions

_READING = (
    click.option(
        "--format", "format_", default="auto", show_default=True, metavar="NAME",
        help="Layout of SOURCE: beir · pairs (by columns) · flagembedding · tevatron · dpr · squad · msmarco · chat · "
        "labeled-list · llama-index · images · auto (tell it from the source).",
    ),
    click.option(
        "--query-column", metavar="NAME",
        help="Column of the queries. The usual names are recognized, for this and the next five columns.",
    ),
    click.option(
        "--positive-column", metavar="NAME",
        help="Column of the relevant text, or of a list of relevant texts. Several (title,description) are joined by a space.",
    ),
    click.option("--id-column", metavar="NAME", help="Column of the ids of the queries."),
    click.option("--document-id-column", metavar="NAME", help="Column of the ids of the relevant texts."),
    click.option(
        "--group-column", metavar="NAME",
        help="Column of a label. With the filter 'group', texts with the label of the query are not its negatives.",
    ),
    click.option(
        "--group-positives", is_flag=True,
        help="Make groups of what positives connect: duplicates of duplicates. With the filter 'group' they are no negatives.",
    ),
    click.option("--relevance-column", metavar="NAME", help="Column of judgements: numbers, or words such as true."),
    click.option(
        "--relevant-from", type=float, metavar="X",
        help="Lowest grade of a positive. Lower grades above 0 say nothing; 0 and below mean judged not relevant.  "
        "[default: every grade above 0]",
    ),
    click.option(
        "--corpus", multiple=True, metavar="F", type=click.Path(path_type=Path),
        help="File, folder or pattern with additional documents. Repeat the option for several.",
    ),
    click.option("--text-column", metavar="NAME", help="Column of the texts in --corpus."),
    click.option(
        "--own-negatives", "own_negatives", type=click.Choice(["corpus", "judged", "candidates"]), default="corpus", show_default=True,
        help="What the negatives in SOURCE are: documents like others, judged not relevant to the query of their row, or its "
        "candidates (of 'hardneg mine --candidates given', which implies it).",
    ),
    click.option(
        "--quoting", type=click.Choice(["auto", "quotes", "none"]), default="auto", show_default=True,
        help="How TSV files are written: with quotes around fields, or with quotes as characters.",
    ),
    click.option(
        "--skip-unknown", is_flag=True,
        help="Skip judgements with unknown ids in a BEIR folder and report their number, instead of stopping.",
    ),
    click.option(
        "--images", type=click.Choice(["documents", "queries"]), default="documents", show_default=True,
        help="What the pictures of a folder, of an image column or of WebDataset shards are. Their captions are the other side.",
    ),
    click.option(
        "--image-column", metavar="NAME",
        help="Column of the pictures: paths, or bytes as Hugging Face stores them; in shards, the extension.",
    ),
    click.option("--caption-column", metavar="NAME", help="Column of their captions: a text or a list of texts."),
    click.option(
        "--caption-template", default="{}", show_default=True, metavar="TEXT",
        help="Caption of a picture that has a class only, such as 'a photo of a {}'.",
    ),
    click.option(
        "--image-root", metavar="FOLDER", type=click.Path(path_type=Path),
        help="Folder that paths of pictures are relative to, and may not leave.  [default: that of the file]",
    ),
    click.option("--outside-images", is_flag=True, help="Let the paths of pictures lead out of that folder."),
    click.option(
        "--skip-broken", is_flag=True,
        help="Decode every picture as it is read; skip those that cannot be, and report their number, instead of stopping.",
    ),
)  # fmt: skip


_NAMES = frozenset(
    option.name or ""
    for option in with_options(_READING, lambda: None).__click_params__  # type: ignore[attr-defined]
) | {"split"}


def reading(
    split: str = "train", text: str = "Split to read of a BEIR folder, a saved dataset or a built-in dataset."
) -> Callable[[Command], Command]:
    """Add the options that say how SOURCE is read.

    Args:
        split: the default of `--split`.
        text: its help text.
    """
    first = click.option("--split", default=split, show_default=True, metavar="NAME", help=text)
    return lambda command: with_options((first, *_READING), command)


def typed_options(ctx: click.Context, given: dict[str, Any], names: Collection[str] | None = None) -> list[str]:
    """The options that were given to a command, as words of a command that reads the same.

    Args:
        ctx: the command, where it was called.
        given: the values of its options. Those that are None by now are left out.
        names: the options that count; None: those that say how SOURCE is read.
    """
    names = _NAMES if names is None else names
    words: list[str] = []
    for option in ctx.command.params:
        name = option.name or ""
        if name not in names or ctx.get_parameter_source(name) is click.core.ParameterSource.DEFAULT:
            continue
        value = given[name]
        if isinstance(option, click.Option) and option.is_flag:
            words += [option.opts[0]] if value else []
            continue
        for each in () if value is None else value if isinstance(value, tuple) else (value,):
            words += [option.opts[0], str(each)]
    return words


def read_options(given: dict[str, Any], split: str | None = None) -> ReadOptions:
    """The options for reading, from the options of a command. `split` stands for its own `--split`."""
    from hardneg.data.options import ReadOptions

    _check_split()
    names = (
        "query_column", "positive_column", "id_column", "document_id_column", "group_column", "relevance_column",
        "relevant_from", "text_column", "quoting", "skip_unknown", "images", "image_column", "caption_column",
        "caption_template", "image_root", "outside_images", "skip_broken", "group_positives",
    )  # fmt: skip
    return ReadOptions(
        format=given["format_"],
        split=given["split"] if split is None else split,
        corpus=given["corpus"] or None,
        negatives=given["own_negatives"],
        **{name: given[name] for name in names},
    )


def _check_split() -> None:
    """UsageError for --split where SOURCE is one file, which has no splits: it would be read as a whole, as `train` is."""
    ctx = click.get_current_context()
    source = str(ctx.params.get("source", ""))
    typed = ctx.get_parameter_source("split") is click.core.ParameterSource.COMMANDLINE
    if typed and ctx.params["split"] != "train" and Path(source).is_file():
        raise click.UsageError(
            f"{plain(source)} is one file, which has no splits: leave --split {plain(str(ctx.params['split']))} out, or "
            f"name the file of that split"
        )

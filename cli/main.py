"""The `hardneg` command with its subcommands, and the exit code for each kind of error."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
import warnings
from typing import Any, NoReturn

import click

from hardneg.errors import HardnegError, HardnegWarning, UsageError, suggestion

from .plain import json_text, plain

_COMMANDS = {
    "inspect": (".inspect", "Show what a dataset is taken for, before anything is mined."),
    "mine": (".mine", "Find hard negatives for every query of a dataset."),
    "work": (".work", "Do tasks of a mining pass that was planned for several workers."),
    "select": (".select", "Filter and sample the candidates of a run again, without a new search."),
    "score": (".score", "Score the candidates of a run with a cross-encoder, once, for filters and distillation."),
    "export": (".export", "Write the negatives of a run in a format that training libraries read."),
    "diagnose": (".diagnose", "Check whether the negatives of a run are any good, and say what would help."),
    "compare": (".compare", "Show what changed between two runs over the same dataset."),
    "judge": (".judge", "Draw candidates of a run, for people or a model to judge."),
    "calibrate": (".calibrate", "Learn how likely a candidate is a false negative, and choose a threshold."),
    "verify": (".verify", "Check every file of a run against its checksum, large ones too."),
    "check-pairs": (".check_pairs", "Count the known pairs of a run that are doubtful."),
    "train": (".train", "Train an encoder with negatives that are mined again as it learns."),
    "evaluate": (".evaluate", "Measure how well an encoder retrieves: nDCG, MRR, recall."),
    "doctor": (".doctor", "Show what this machine has, and what will be picked on it, and why."),
    "completion": (".completion", "Let your shell complete commands and options."),
    "demo": (".demo", "Try everything on built-in data in a few minutes."),
}


class _ReaderLeft(Exception):
    """The reader of our pipe has finished."""


class _Commands(click.Group):
    """A group that imports a command only when it is called, so that `hardneg --help` does not load torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        from importlib import import_module

        from .config import with_config
        from .short_help import with_short_help

        command: click.Command = getattr(import_module(_COMMANDS[cmd_name][0], __package__), cmd_name.replace("-", "_"))
        return with_short_help(with_config(command, _COMMANDS))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no such command {args[0]!r}.{suggestion(args[0], _COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # click would exit with 1
            raise _ReaderLeft from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="hardneg")
def cli() -> None:
    """Hard negatives for training embedding models.

    A hard negative is a document that is near a query, yet not relevant to it. 'hardneg mine' finds hard negatives and
    writes them to a folder, called a run. The other commands filter, check and export a run, or train an encoder.

    \b
    Try:
      hardneg demo
      hardneg mine builtin:pycode --out run
      hardneg export run --format triplet --out triplets.jsonl
      hardneg mine --help
    """


def main(args: list[str] | None = None) -> NoReturn:
    """Run a command and exit the process.

    Exit codes: 0 for success, 1 for bad data or a bad run, 2 for wrong usage, 3 for a finding at the level of
    --fail-on, 130 for an interruption.

    Args:
        args: the arguments; None: those of the process.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    warnings.simplefilter("ignore", HardnegWarning)  # commands print the notes of a run themselves
    try:
        _check_names(sys.argv[1:] if args is None else args)
        # If a command exits on purpose (`--fail-on`), click returns its exit code here.
        result = cli.main(args=args, prog_name="hardneg", standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        words = io.StringIO()
        error.show(file=words)
        click.echo("\n".join(map(plain, words.getvalue().rstrip("\n").split("\n"))), err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(_go_on(sys.argv[1:] if args is None else args), err=True)
        code = 130
    except HardnegError as error:
        files = _configs(sys.argv[1:] if args is None else args) if isinstance(error, UsageError) else ""
        click.echo(f"error: {plain(error.typed)}{files}", err=True)
        code = 2 if isinstance(error, UsageError) else 1
    except (_ReaderLeft, BrokenPipeError):
        # The reader of the pipe has finished, as in `| head`. This is not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        where = f"{plain(error.filename)}: " if error.filename else ""
        click.echo(
            f"error: {where}{plain(error.strerror or error)}. Check the path, its permissions and the free disk space",
            err=True,
        )
        code = 1
    except MemoryError:
        click.echo("error: out of memory", err=True)
        code = 1
    sys.exit(code)


def _check_names(args: list[str]) -> None:
    """UsageError if an argument is not UTF-8, which nothing that is written could hold."""
    if not all(each == each.encode("utf-8", "ignore").decode() for each in args):
        from hardneg.storage.files import check_name

        for each in args:
            check_name(each)


def _configs(args: list[str]) -> str:
    """Where options may stand that were not typed, for the end of a message."""
    at = next((i for i, each in enumerate(args) if each == "--config" or each.startswith("--config=")), None)
    if at is None:
        return ""
    file = args[at].partition("=")[2] or (args[at + 1] if at + 1 < len(args) else "")
    return f" (options are also taken from {plain(file)})"


def _go_on(args: list[str]) -> str:
    """What to say when a command was interrupted: how to continue, where that is possible."""
    if args and args[0] == "score":
        again = [each for each in args if each != "--overwrite"]
        return f"interrupted. What was scored is kept. To go on: hardneg {plain(shlex.join(again))}"
    if not args or args[0] not in ("mine", "train"):
        return "interrupted"
    again = [each for each in args if each not in ("--overwrite", "--resume")]
    if args[0] == "train" and not _begun(args):
        return "interrupted before the training began: nothing was written"
    if args[0] == "train":
        return f"interrupted. {_kept(args)}: hardneg {plain(shlex.join(again))} --resume"
    return f"interrupted. To go on where it stopped: hardneg {plain(shlex.join(again))} --resume"


def _out(args: list[str]) -> str:
    """The folder that --out names; empty: it is not on the command line."""
    after = next((args[i + 1] for i, each in enumerate(args[:-1]) if each == "--out"), "")
    return next((each.partition("=")[2] for each in args if each.startswith("--out=")), after)


def _kept(args: list[str]) -> str:
    """From where an interrupted training goes on."""
    from pathlib import Path

    from hardneg.training.folder import last_step

    out = _out(args)
    if not out:
        return "To go on from its last checkpoint"
    step = last_step(Path(out))
    if step is None:
        return "There is no checkpoint yet (--save-every N makes them more often). To begin again"
    return f"To go on from its last checkpoint, of step {step:,}"


def _begun(args: list[str]) -> bool:
    """Whether there is something to resume: a training in the folder that --out names, or one beside it that is to replace it."""
    from pathlib import Path

    from hardneg.storage.folders import resolved, staging
    from hardneg.storage.json_files import decode_json

    def unfinished(folder: Path) -> bool:
        try:
            return decode_json(folder / "train.json").get("finished") is False
        except HardnegError:
            return False

    out = _out(args)
    if not out or "--resume" in args:
        return True  # the folder is named in a file of options, or the training was begun before
    return unfinished(Path(out)) or unfinished(staging(resolved(Path(out))))


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


JSON_VERSION = 1  # of what --json prints; raised where a key goes away or means something else, not where one is added


def print_json(value: dict[str, Any]) -> None:
    """Print an object as JSON on stdout, with the name and the version of its form, as in "hardneg-mine-1"."""
    form = {"schema": f"hardneg-{click.get_current_context().info_name}-{JSON_VERSION}"}
    click.echo(json_text(form | value))

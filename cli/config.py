"""`--config FILE.toml`: options from a file, as if they had been typed. What is typed goes first."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from hardneg.errors import suggestion

_LARGEST = 1 << 20  # bytes of a file of options


def with_config(command: click.Command, commands: Iterable[str]) -> click.Command:
    """The command with the option --config.

    Args:
        command: a command.
        commands: the names of all commands, for which a file may have tables.
    """
    names = tuple(commands)

    def read(ctx: click.Context, parameter: click.Parameter, path: str | None) -> None:
        if path is not None:
            ctx.default_map = {**(ctx.default_map or {}), **_options(path, command, names, ctx)}

    if not any(parameter.name == "config" for parameter in command.params):
        command.params.append(
            click.Option(
                ["--config"], metavar="FILE.toml", is_eager=True, expose_value=False, callback=read,
                help=f"Options from a TOML file, by their names: depth = 50, in the table [{command.name}] or in none. What is typed "
                "goes first.",
            )
        )  # fmt: skip
    return command


def _options(path: str, command: click.Command, commands: tuple[str, ...], ctx: click.Context) -> dict[str, Any]:
    """The options in a file, by the names of the command's parameters."""
    content = _read(Path(path))
    tables = {name: value for name, value in content.items() if isinstance(value, dict)}
    for name in tables:
        if name not in commands:
            raise click.UsageError(f"{path}: the table [{name}] is no command.{suggestion(name, commands)}")
    given = {name: value for name, value in content.items() if name not in tables} | tables.get(command.name or "", {})
    known = {
        option.lstrip("-"): parameter
        for parameter in command.params
        for option in ([parameter.name or ""] if isinstance(parameter, click.Argument) else parameter.opts)
        if parameter.name != "config" and not parameter.is_eager  # such as --help, which ends the command
    }
    found = {}
    for name, value in given.items():
        parameter = known.get(name.replace("_", "-")) or known.get(name)
        if parameter is None:
            raise click.UsageError(f"{path}: hardneg {command.name} has no option {name!r}.{suggestion(name, known)}")
        found[parameter.name or ""] = _value(value, parameter, f"{path}, {name}")
        _check(found[parameter.name or ""], parameter, f"{path}, {name}", ctx)
    return found


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise click.UsageError(f"{path} is no file: --config takes a TOML file of options")
    with open(path, "rb") as f:
        content = f.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise click.UsageError(f"{path} is larger than a MiB: it holds more than options")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also text that is not UTF-8, and numbers of too many digits
        raise click.UsageError(f"{path} is no TOML file ({error})") from None


def _value(value: Any, parameter: click.Parameter, where: str) -> Any:
    """The value of one option; UsageError if an option cannot have it."""
    several = parameter.multiple if isinstance(parameter, click.Option) else parameter.nargs != 1
    values = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not several:
        raise click.UsageError(f"{where}: a list, but the option is given once")
    for each in values:
        if not isinstance(each, str | int | float):
            raise click.UsageError(
                f"{where}: {each!r:.80} is of type {type(each).__name__}, expected a text, a number or a list"
            )
        if isinstance(each, bool) != (isinstance(parameter, click.Option) and parameter.is_flag):
            raise click.UsageError(
                f"{where}: true and false are for options without a value" if isinstance(each, bool)
                else f"{where}: expected true or false"
            )  # fmt: skip
        if not isinstance(each, str) and isinstance(parameter.type, click.Path | click.File):
            raise click.UsageError(f"{where}: {each!r} is a number, expected the name of a file, in quotes")
        if isinstance(each, str) and _names_code(each):
            raise click.UsageError(
                f"{where}: {each!r:.80} names code to run: type it on the command line, files cannot"
            )
    return tuple(values) if several else value


def _check(value: Any, parameter: click.Parameter, where: str, ctx: click.Context) -> None:
    """UsageError that names the file, for a number or a choice that click would refuse without saying where it stands."""
    if not isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType | click.Choice):
        return
    for each in value if isinstance(value, tuple) else [value]:
        try:
            parameter.type.convert(each, parameter, ctx)
        except click.BadParameter as error:
            raise click.UsageError(f"{where}: {error.message}") from None
        except (ValueError, OverflowError):  # infinity and NaN, which TOML can write, as a whole number
            raise click.UsageError(f"{where}: {each!r:.80} is no number that this option can have") from None


def _names_code(text: str) -> bool:
    if "module:" not in text:
        return False
    from hardneg.mining.specs import names_code

    return names_code(text)

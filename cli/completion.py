"""The command `hardneg completion`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from hardneg.errors import UsageError

from .main import cli
from .plain import plain

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", required=False, type=click.Choice(SHELLS))
@click.option("--install", is_flag=True, help="Write the script into your home folder, and let the shell load it.")
def completion(shell: str | None, install: bool) -> None:
    """Let a shell complete commands, options and paths with the key Tab.

    SHELL is bash, zsh or fish.  [default: the shell in the variable SHELL]

    \b
    Examples:
      hardneg completion --install
      hardneg completion zsh > _hardneg
    """
    from click.shell_completion import get_completion_class

    name = shell or Path(os.environ.get("SHELL", "")).name
    kind = get_completion_class(name) if name in SHELLS else None
    if kind is None:
        raise UsageError(f"the shell {name!r} is not known: say which, as in 'hardneg completion bash'")
    script = kind(cli, {}, "hardneg", "_HARDNEG_COMPLETE").source()
    if not install:
        click.echo(script)
        return
    path, rc = _places(name, Path.home())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script, "utf-8")
    click.echo(f"wrote {plain(path)}")
    if rc is not None:
        _load(path, rc)
    click.echo("open a new shell to use it")


def _places(shell: str, home: Path) -> tuple[Path, Path | None]:
    """(where the script goes, the file that must load it); None: the shell finds it there."""
    if shell == "fish":
        return home / ".config" / "fish" / "completions" / "hardneg.fish", None
    return home / ".local" / "share" / "hardneg" / f"completion.{shell}", home / f".{shell}rc"


def _load(path: Path, rc: Path) -> None:
    """Let a shell's file load the script, once."""
    line = f'[ -f "{path}" ] && . "{path}"'
    before = rc.read_text("utf-8") if rc.exists() else ""
    if any(each.startswith(line) for each in before.splitlines()):
        return
    with open(rc, "a", encoding="utf-8") as f:
        f.write(f"{'' if before.endswith(chr(10)) or not before else chr(10)}{line}  # completion of hardneg\n")
    click.echo(f"added a line to {plain(rc)}")

"""What README says to type works, and the pages name every filter, sampler and export format."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from hardneg_cli.main import cli

from hardneg.errors import RunError
from hardneg.exports.export import EXPORT_FORMATS
from hardneg.mining.specs import parse_filter, parse_sampler
from hardneg.registry import names

from .pages import PAGES, README, ROOT, commands
from .processes import run_code

LONGEST_README = 200
FILTERS = (ROOT / "docs" / "filters.md").read_text("utf-8")
FORMATS = (ROOT / "docs" / "formats.md").read_text("utf-8")


def test_it_is_short() -> None:
    assert README.read_text("utf-8").count("\n") <= LONGEST_README


def test_its_blocks_run(tmp_path: Path) -> None:
    """One after the other, as somebody would type them: those of the shell, and those of Python."""
    text = README.read_text("utf-8")
    blocks = re.findall(r"<!-- tested: (shell|python) -->\n```(?:python)?\n(.*?)```", text, re.S)
    assert [kind for kind, _ in blocks] == ["shell", "python", "shell", "shell", "python"]
    assert text.count("```python") == 2
    things = ["bread", "rivers", "trains", "clouds", "chess", "violins", "taxes", "whales", "paint", "clocks"]
    with (tmp_path / "pairs.jsonl").open("w", encoding="utf-8") as f:
        for i in range(200):
            about = things[i % len(things)]
            f.write(
                json.dumps({"query": f"question {i} about {about}", "positive": f"answer {i} about {about}"}) + "\n"
            )
    # In one process, which is four times as fast: each command is called as the shell would call it.
    code = ["from hardneg_cli.main import cli"]
    for kind, block in blocks:
        if kind == "python":
            code.append(block)
        else:
            calls = [shlex.split(line, comments=True) for line in block.splitlines()]
            assert all(call[0] == "hardneg" for call in calls)
            code += [f"assert cli.main({call[1:]!r}, 'hardneg', standalone_mode=False) in (None, 0)" for call in calls]
    done = run_code("\n".join(code), cwd=tmp_path, seconds=280)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "triplets.jsonl").stat().st_size
    assert (tmp_path / "report.html").stat().st_size


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.stem)
def test_every_command_has_its_options(page: Path) -> None:
    """Each command line of the pages names commands and options that there are; none of them is run."""
    for line in commands(page):
        for part in re.split(r" && | \| ", line):
            words = shlex.split(part)
            if words[0] == "hardneg":
                assert_known(words[1:], part)


def assert_known(words: list[str], line: str) -> None:
    with click.Context(cli) as outer:
        command = cli.get_command(outer, words[0])
        assert command is not None, line
        parser = command.make_parser(click.Context(command, parent=outer, info_name=words[0]))
        try:
            parser.parse_args(list(words[1:]))
        except click.UsageError as error:
            raise AssertionError(f"{line}: {error.format_message()}") from None


def test_every_filter_and_sampler_named_exists() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", FILTERS, re.M)
    specs = [spec for row in rows for spec in re.findall(r"`([^`]+)`", row)]
    samplers = [spec for spec in specs if spec.partition(":")[0] in names("sampler")]
    filters = [spec for spec in specs if spec not in samplers]
    assert len(filters) >= 12
    for spec in filters:
        if spec.startswith("posterior:run"):  # of a run that is not there
            with pytest.raises(RunError, match=r"run/posterior.json does not exist"):
                parse_filter(spec)
        elif not spec.startswith("..."):
            parse_filter(spec)
    line = re.search(r"^(`top`.*?)\. ", FILTERS, re.M)
    assert line is not None
    for spec in (*re.findall(r"`([^`]+)`", line.group(1)), *samplers):
        parse_sampler(spec)


def test_every_filter_and_sampler_is_named() -> None:
    """All that the registry has, in a row of a table. Its source is read, as other tests register parts of their own."""
    rows = re.findall(r"^\| (`[^|]*`) \|", FILTERS, re.M)
    named = {spec.partition(":")[0] for row in rows for spec in re.findall(r"`([^`]+)`", row)}
    source = (ROOT / "hardneg" / "registry.py").read_text("utf-8")
    for kind in ("filter", "sampler"):
        section = re.search(rf'"{kind}": \{{(.*?)\}}', source, re.S)
        assert section is not None
        built_in = set(re.findall(r'"([a-z-]+)": "hardneg', section.group(1)))
        assert len(built_in) >= 4
        assert built_in <= named, built_in - named


def test_every_export_format_is_named() -> None:
    """In the list and in the table."""
    table = re.findall(r"^\| `([^`]+)` \|", FORMATS, re.M)
    for name in EXPORT_FORMATS:
        assert FORMATS.count(f"`{name}`") >= 2
        assert name in table

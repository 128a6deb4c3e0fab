"""What the README says to type works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hardneg.errors import RunError
from hardneg.exports.export import EXPORT_FORMATS
from hardneg.mining.specs import parse_filter, parse_sampler

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_python_blocks_run(tmp_path: Path) -> None:
    """One after the other, as somebody would type them."""
    blocks = re.findall(r"<!-- tested: python -->\n```python\n(.*?)```", README, re.S)
    assert len(blocks) == 7
    code = "\n".join(blocks)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_filter_and_sampler_named_exists() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", README, re.M)
    specs = [spec for row in rows for spec in re.findall(r"`([^`]+)`", row)]
    assert len(specs) >= 12
    for spec in specs:
        if spec.startswith("posterior:run"):  # of a run that is not there
            with pytest.raises(RunError, match=r"run/posterior.json does not exist"):
                parse_filter(spec)
        elif not spec.startswith("..."):
            parse_filter(spec)
    line = re.search(r"\*\*Samplers\.\*\* (.*?)\. ", README)
    assert line is not None
    for spec in re.findall(r"`([^`]+)`", line.group(1)):
        parse_sampler(spec)


def test_every_export_format_is_named() -> None:
    for name in EXPORT_FORMATS:
        assert f"`{name}`" in README

"""The pages of the documentation, as the tests read them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))


def python_blocks(page: Path) -> list[str]:
    """The tested Python blocks of a page, in order."""
    return re.findall(r"<!-- tested: python -->\n```python\n(.*?)```", page.read_text("utf-8"), re.S)


def commands(page: Path) -> list[str]:
    """The lines of a page's blocks without a language that call `hardneg`, without their comments."""
    blocks = re.findall(r"^```\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.startswith("hardneg ")]

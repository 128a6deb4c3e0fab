"""The report in a real browser: it renders, searches, asks nobody for anything, and runs no script of the dataset."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hardneg
from hardneg.diagnostics.diagnose import diagnose
from hardneg.diagnostics.report.page import report_page, write_page
from tests.conftest import NO_BROWSER, run_here

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = [
    "<script>window.hacked = 1</script> one", "</script><script>window.hacked = 2</script> two",
    "<img src=x onerror='window.hacked=3'> three", "<!-- <script> four", "\u2028 five & \" ' ` ${window.hacked=4}",
    "]]> {{ 7 * 7 }} six", "<svg/onload=window.hacked=5> seven",
]  # fmt: skip

pytestmark = pytest.mark.xdist_group("report")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a dataset that is full of markup, with verdicts and probabilities."""
    folder = tmp_path_factory.mktemp("report")
    things = ["bread", "rivers", "trains", "clouds", "chess", "violins", "taxes", "whales", "paint", "clocks"]
    pairs = hardneg.Pairs.from_columns(
        [f"question {i} about {things[i % 10]} {NASTY[i % 7]}" for i in range(200)],
        [f"answer {i} about {things[i % 10]} {NASTY[(i + 1) % 7]}" for i in range(200)],
        query_ids=[f"<b>q{i}</b>" for i in range(200)],
    )
    run = hardneg.mine(pairs, folder / "<i>run</i>", hardneg.MineOptions(depth=40))
    hardneg.calibrate(run, alpha=0.2).save(folder / "p.json")
    chosen = hardneg.SelectOptions(filters=(f"posterior:{folder / 'p.json'}", "margin:absolute=0.01"))
    run = hardneg.select(run, chosen, folder / "run2")
    page = replace(report_page(diagnose(run), run), numbers=[("<b>label</b>", "1", "")])
    write_page(page, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip(NO_BROWSER)
    from playwright.sync_api import sync_playwright

    quiet = ["background-networking", "component-update", "sync", "gpu", "quic"]
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


def opened(browser: Any, path: Path, **how: Any) -> tuple[Any, list[str], list[str]]:
    """(page, what went wrong, what was asked for)."""
    context = browser.new_context(**how)
    made = context.new_page()
    wrong: list[str] = []
    asked: list[str] = []
    made.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    made.on("pageerror", lambda e: wrong.append(str(e)))
    made.on("dialog", lambda d: wrong.append("dialog"))
    made.on("request", lambda r: asked.append(r.url))
    made.goto(path.as_uri())
    made.wait_for_selector("html[data-ready=yes]")
    made.wait_for_function(
        "document.querySelectorAll('.chart svg').length === document.querySelectorAll('.chart').length"
    )
    return made, wrong, asked


@pytest.mark.parametrize(
    "how",
    [{}, {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark", "has_touch": True}],
    ids=["desk", "phone"],
)
def test_it_renders_in_a_browser(browser: Any, page: Path, how: dict[str, Any]) -> None:
    made, wrong, asked = opened(browser, page, **how)
    assert wrong == []
    assert asked == [page.as_uri()]
    assert made.evaluate("window.hacked") is None
    assert made.locator(".chart svg").count() >= 4
    assert made.locator(".chart svg path, .chart svg rect").count() > 50  # they show something
    assert made.locator(".example").count() > 20
    wide = made.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0  # nothing sticks out, on a phone either
    background = made.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, re.findall(r"\d+", background)[:3])) < 200
    assert dark == (how.get("color_scheme") == "dark")


def test_texts_stay_texts(browser: Any, page: Path) -> None:
    made, wrong, _ = opened(browser, page)
    shown = made.locator("#examples").inner_text()
    for piece in ("<script>window.hacked = 1</script>", "<img src=x onerror=", "{{ 7 * 7 }}", "<svg/onload="):
        assert piece in shown
    assert "<b>q" in shown
    assert made.locator("#examples script, #examples img, #examples b, #examples svg").count() == 0
    assert "<i>run</i>" in made.locator("h1").inner_text() or "run2" in made.locator("h1").inner_text()
    assert "<b>label</b>" in made.locator("td").first.inner_text()
    made.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 9'; document.body.append(s); }"
    )
    assert made.evaluate("window.hacked") is None  # the policy stops what is not the report's own
    assert any("Content Security Policy" in message for message in wrong)


def test_search(browser: Any, page: Path) -> None:
    made, wrong, _ = opened(browser, page)
    total = made.locator(".example").count()
    made.fill("#search", "CHESS question")
    some = made.locator(".example").count()
    assert 0 < some < total
    assert made.locator("#count").inner_text() == f"{some} of {total} queries"
    for i in range(some):
        assert "chess" in made.locator(".example").nth(i).inner_text().lower()
    made.fill("#search", "nothing like it anywhere")
    assert made.locator(".example").count() == 0
    made.fill("#search", "")
    assert made.locator(".example").count() == total
    assert wrong == []


def test_the_file_stands_alone(page: Path) -> None:
    text = page.read_text("utf-8")
    assert len(text.encode()) < 3_000_000
    head = text[: text.index("<style>")]
    assert "default-src 'none'" in head
    assert "unsafe-eval" not in head
    assert "'unsafe-inline'" not in head.split("script-src")[1]
    markup = re.sub(r"<script>.*?</script>", "", text, flags=re.S)  # strings of the library aside
    assert not re.findall(r"<(?:link|img|iframe|script)[^>]+(?:src|href)=", markup)
    assert text.count("</script>") == 3
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))  # type: ignore[union-attr]
    first = data["examples"][0]
    assert {"id", "why", "query", "positives", "positive_score", "candidates"} == set(first)
    verdicts = {candidate["verdict"] for example in data["examples"] for candidate in example["candidates"]}
    assert {"kept", "known"} <= verdicts
    for example in data["examples"]:
        ranks = [candidate["rank"] for candidate in example["candidates"]]
        assert ranks == sorted(ranks)


def test_command_line(tmp_path: Path, page: Path) -> None:
    done = run_here("diagnose", page.parent / "run2", "--html", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    assert "<!doctype html>" in (tmp_path / "r.html").read_text("utf-8")[:20]

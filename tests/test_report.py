"""The report in a real browser: it renders, searches, asks nobody for anything, and runs no script of the dataset."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hardneg
from hardneg.diagnostics.compare import compare
from hardneg.diagnostics.diagnose import diagnose
from hardneg.diagnostics.estimates import Measurements
from hardneg.diagnostics.findings.base import Finding, FindingRule
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.diagnostics.report.neighborhood import flattened
from hardneg.diagnostics.report.page import render, report_page, write_comparison, write_page
from tests.conftest import NO_BROWSER, run_here

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = [
    "<script>window.hacked = 1</script> one", "</script><script>window.hacked = 2</script> two",
    "<img src=x onerror='window.hacked=3'> three", "<!-- <script> four", "\u2028 five & \" ' ` ${window.hacked=4}",
    "]]> {{ 7 * 7 }} six", "<svg/onload=window.hacked=5> seven",
]  # fmt: skip

pytestmark = pytest.mark.xdist_group("report")


class ThreeQueries(FindingRule):
    """Somebody's own rule, which names the queries that it concerns."""

    def check(self, measured: Measurements, thresholds: Thresholds, run: str) -> Finding:
        return Finding(
            "three", "warning", "look at three", "three", 3.0, 2.0, [f"<b>q{i}</b>" for i in (3, 50, 199)], ""
        )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a dataset that is full of markup, with verdicts and probabilities."""
    folder = tmp_path_factory.mktemp("report")
    things = ["bread", "rivers", "trains", "clouds", "chess", "violins", "taxes", "whales", "paint", "clocks"]
    pairs = hardneg.Pairs.from_columns(
        [f"question {i} about {things[i % 10]} {NASTY[i % 7]}" for i in range(200)],
        [f"answer {i} about {things[i % 10]} {NASTY[(i + 1) % 7]}" for i in range(200)],
        query_ids=[f"<b>q{i}</b>" + "/x" * (150 * (i == 7)) for i in range(200)],
    )
    run = hardneg.mine(pairs, folder / "<i>run</i>", hardneg.MineOptions(depth=40))
    hardneg.calibrate(run, alpha=0.2).save(folder / "p.json")
    chosen = hardneg.SelectOptions(filters=(f"posterior:{folder / 'p.json'}", "margin:absolute=0.01"))
    run = hardneg.select(run, chosen, folder / "run2")
    page = replace(report_page(diagnose(run, rules=[ThreeQueries()]), run), numbers=[("<b>label</b>", "1", "")])
    write_page(page, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def compared(page: Path) -> Path:
    """The report of a comparison."""
    write_comparison(compare(page.parent / "<i>run</i>", page.parent / "run2"), page.parent / "compared.html")
    return page.parent / "compared.html"


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


def shown(made: Any) -> list[str]:
    """The queries that the table shows."""
    texts: list[str] = made.locator("#table td.query button").all_inner_texts()
    return texts


def saved(made: Any, button: str, folder: Path) -> Path:
    """What a button saves."""
    with made.expect_download() as waiting:
        made.click(button)
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


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
    assert made.locator(".chart svg").count() >= 5
    assert made.locator(".chart svg path, .chart svg rect").count() > 50  # they show something
    assert len(shown(made)) == 50
    made.keyboard.press("j")
    assert made.locator(".negatives .item.now").count() == 1
    columns = [made.locator(f".sides > .{name}").bounding_box() for name in ("positives", "negatives")]
    if "viewport" in how:
        assert columns[1]["y"] < columns[0]["y"]  # on a phone, negatives come first
    else:
        assert columns[1]["x"] > columns[0]["x"]
        assert abs(columns[1]["y"] - columns[0]["y"]) < 1
    made.fill("#search", "/x/x/x")
    made.keyboard.press("Escape")
    made.keyboard.press("n")  # the query and a negative of it have long ids
    wide = made.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0  # nothing sticks out, on a phone either
    background = made.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, re.findall(r"\d+", background)[:3])) < 200
    assert dark == (how.get("color_scheme") == "dark")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
@pytest.mark.slow
def test_accessible(browser: Any, page: Path, compared: Path, scheme: str, width: int) -> None:
    """axe-core finds nothing, with a query open and something judged."""
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    for path in (page, compared):
        how = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
        made, _, _ = opened(browser, path, bypass_csp=True, **how)
        for key in "jj1":
            made.keyboard.press(key)
        made.add_script_tag(content=axe)
        found = made.evaluate("axe.run()")["violations"]
        assert [(each["id"], [node["target"] for node in each["nodes"]]) for each in found] == []
        made.context.close()


def test_texts_stay_texts(browser: Any, page: Path) -> None:
    made, wrong, _ = opened(browser, page)
    for piece in ("<script>window.hacked = 1</script>", "<img src=x onerror=", "{{ 7 * 7 }}", "<svg/onload="):
        made.fill("#search", piece.split()[0].lower())
        made.keyboard.press("Escape")
        made.keyboard.press("n")
        assert piece in made.locator("#table").inner_text()
        assert "<b>q" in made.locator("td.detail").inner_text()
        assert made.locator("#table script, #table img, #table b").count() == 0
        assert made.locator("#table svg:not(.map)").count() == 0
    assert "<i>run</i>" in made.locator("h1").inner_text() or "run2" in made.locator("h1").inner_text()
    assert "<b>label</b>" in made.locator("section[aria-labelledby=numbers] td").first.inner_text()
    made.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 9'; document.body.append(s); }"
    )
    assert made.evaluate("window.hacked") is None  # the policy stops what is not the report's own
    assert any("Content Security Policy" in message for message in wrong)


def test_search_sort_and_pages(browser: Any, page: Path) -> None:
    made, wrong, _ = opened(browser, page)
    made.fill("#search", "CHESS q14")
    some = shown(made)
    assert made.locator("#count").inner_text() == f"{len(some)} of 200 queries"
    assert 1 <= len(some) < 50
    assert any("question 14 about chess" in text for text in some)
    made.fill("#search", "nothing like it anywhere")
    assert shown(made) == []
    made.fill("#search", "")
    first = shown(made)
    made.click("#after")
    assert made.locator("#page").inner_text() == "page 2 of 4"
    assert not set(first) & set(shown(made))
    made.click("th:has-text('Margin') button")
    margins = [float(text) for text in made.locator("#table tr.row td:nth-child(3)").all_inner_texts()]
    assert margins == sorted(margins)
    assert made.locator("th[aria-sort=ascending]").inner_text() == "Margin"
    made.click("th:has-text('Margin') button")
    assert [float(t) for t in made.locator("#table tr.row td:nth-child(3)").all_inner_texts()] != margins
    assert made.locator("th[aria-sort=descending]").count() == 1
    assert wrong == []


def test_only_the_queries_of_a_finding(browser: Any, page: Path) -> None:
    made, wrong, _ = opened(browser, page)
    made.click("button.only[data-code=three]")
    assert made.locator("#count").inner_text() == "3 of 200 queries"
    assert sorted(int(text.split()[1]) for text in shown(made)) == [3, 50, 199]
    assert made.locator("#by-finding option:checked").inner_text() == "three (3)"
    assert wrong == []


def test_ten_pairs_judged_with_the_keyboard(browser: Any, page: Path, tmp_path: Path) -> None:
    made, wrong, _ = opened(browser, page)
    for i in range(10):
        made.keyboard.press("n" if i % 2 else "j")  # the next query, its first pair; or the next pair
        if i % 2:
            made.keyboard.press("j")
        made.keyboard.press("01"[i % 3 == 0])
    assert made.locator("#marked").inner_text() == "10 pairs judged, not saved"
    made = made.context.new_page()  # they are kept
    made.goto(page.as_uri())
    made.wait_for_selector("html[data-ready=yes]")
    assert made.locator("#marked").inner_text().startswith("10 pairs judged")
    path = saved(made, "#save", tmp_path)
    rows = rows_of(path)
    assert [row["relevant"] for row in rows].count("1") == 4
    assert len({(row["query_id"], row["document_id"]) for row in rows}) == 10
    run = page.parent / "run2"
    done = run_here("calibrate", run, path, "--out", tmp_path / "p.json", "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["report"]["judged"] == 10
    assert value["report"]["relevant"] == 4
    assert value["guarantee"] is None
    named = run_here("calibrate", run, "--judgements", path, "--out", tmp_path / "p2.json")
    assert named.returncode == 0, named.stderr
    assert (tmp_path / "p.json").read_bytes() == (tmp_path / "p2.json").read_bytes()
    assert wrong == []


@pytest.mark.slow
def test_drawn_pairs_are_judged_in_the_page(browser: Any, page: Path, tmp_path: Path) -> None:
    """What hardneg judge drew comes back as its own file, and the guarantee takes it."""
    run, asked = page.parent / "run2", tmp_path / "f.csv"
    assert run_here("judge", run, "--sample", "40", "--alpha", "0.2", "--out", asked).returncode == 0
    found = run_here("diagnose", run, "--html", tmp_path / "r.html", "--judgements", asked)
    assert found.returncode == 0, found.stderr
    made, wrong, _ = opened(browser, tmp_path / "r.html")
    made.click("#drawn-pair")
    text = made.locator("#drawn-pair").inner_text()
    assert "P(relevant)" not in text
    assert "score" not in text
    for _ in range(40):
        made.keyboard.press("0")
    made.keyboard.press("k")
    made.keyboard.press("1")
    assert made.locator("#drawn-count").inner_text() == "pair 40 of 40, 40 judged, not saved"
    path = saved(made, "#drawn-save", tmp_path)
    assert path.name == "f-judged.csv"
    before, after = rows_of(asked), rows_of(path)
    assert [{**row, "relevant": ""} for row in after] == before
    assert sorted(row["relevant"] for row in after) == ["0"] * 39 + ["1"]
    done = run_here("calibrate", run, path, "--out", tmp_path / "p.json", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["guarantee"]["judged"] > 0
    assert wrong == []


def test_the_file_stands_alone(page: Path) -> None:
    text = page.read_text("utf-8")
    assert len(text.encode()) < 3_000_000
    head = text[: text.index("<style>")]
    assert "default-src 'none'" in head
    assert "unsafe-eval" not in head
    assert "'unsafe-inline'" not in head.split("script-src")[1]
    markup = re.sub(r"<script( type=\"text/plain\" id=\"library\")?>.*?</script>", "", text, flags=re.S)
    assert not re.findall(r"<(?:link|img|iframe|script)[^>]+(?:src|href)=", markup)
    assert text.count("</script>") == 3
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))  # type: ignore[union-attr]
    queries = data["queries"]
    assert {len(column) for column in queries.values()} == {200}
    codes = {candidate[3] for candidates in queries["candidates"] for candidate in candidates}
    assert {"kept", "known"} <= {data["verdicts"][code] for code in codes}
    for candidates in queries["candidates"]:
        ranks = [candidate[1] for candidate in candidates]
        assert ranks == sorted(ranks)


def test_a_large_run_is_sampled(page: Path) -> None:
    """Some queries are drawn at random, the others are those that findings concern; the page says how many there are."""
    run = hardneg.Run(page.parent / "run2")
    found = diagnose(run)
    made = report_page(found, run, 40)
    assert made.queries is not None
    queries = made.queries["queries"]
    assert len(set(queries["id"])) == len(queries["id"]) == 40
    assert 1 <= queries["why"].count("drawn at random") <= 12
    assert "40 of 200 queries" in made.about_queries
    assert report_page(found, run, 40).queries == made.queries
    everything = report_page(found, run).queries
    assert everything is not None
    worst = [p for p in everything["queries"]["probability"] if p is not None]
    assert max(worst) == max(p for p in queries["probability"] if p is not None)


def test_a_button_promises_the_queries_of_the_page(page: Path) -> None:
    """Not those of the run, of which a finding names some; where none of its queries is on the page, there is no button."""
    run = hardneg.Run(page.parent / "run2")
    found = diagnose(run)
    empty = Measurements()
    three = ThreeQueries().check(empty, Thresholds(), "run")
    absent = replace(three, code="absent", ids=["<b>q8</b>"])
    above = replace(three, code="above-positive", ids=[])
    below = np.where(np.arange(200) < 90, -1.0, 2.0).astype(
        np.float32
    )  # the positives of 90 queries, and of these 90 alone
    found = replace(found, findings=[above, three, absent], subject=replace(found.subject, positive=below))
    counted = {}
    for most in (200, 10):
        made = report_page(found, run, most)
        assert made.queries is not None
        places = [place for flags in made.queries["queries"]["flags"] for place in flags]
        assert list(made.flags.values()) == [places.count(place) for place in range(3)]
        counted[most] = made.flags
        text = render(made)
        for code, count in made.flags.items():
            words = f'data-code="{code}">Show its queries below ({count} of the queries on this page)'
            assert (words in text) == (count > 0)
        assert text.count("of the queries on this page)") == sum(count > 0 for count in made.flags.values())
    assert counted[200]["above-positive"] > 10 >= counted[10]["above-positive"]


def test_the_map_keeps_distances() -> None:
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.normal(size=(16, 2)))[0]
    flat = rng.normal(size=(9, 2))
    found = flattened((flat @ plane.T).astype(np.float32))
    assert found.share == pytest.approx(1.0)
    wanted = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    seen = np.linalg.norm(found.points[:, None] - found.points[None], axis=2)
    np.testing.assert_allclose(seen / seen.max(), wanted / wanted.max(), atol=1e-5)
    same = flattened(np.ones((3, 4), np.float32))
    assert same.points.tolist() == [[0, 0]] * 3


def test_command_line(tmp_path: Path, page: Path) -> None:
    done = run_here("diagnose", page.parent / "run2", "--html", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    assert "<!doctype html>" in (tmp_path / "r.html").read_text("utf-8")[:20]
    done = run_here("diagnose", page.parent / "run2", "--judgements", tmp_path / "f.csv")
    assert done.returncode == 2
    assert "--html" in done.stderr

"""Output for people: progress bars, notes and tables. Bars are those of `hardneg.progress`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hardneg.progress import Progress, shown, silent

from .plain import plain, quoted


def _console(stderr: bool = False) -> Console:
    """A console that shows texts as they are: no markup such as [red], no :smile:, and nothing highlighted."""
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160  # a file or a pipe has no width, and nothing is to be cut
    return console


def _print(console: Console, *parts: str | tuple[str, str]) -> None:
    """Print texts in one line, which is not broken. A part may be (text, style). All texts may be those of others."""
    pieces = [(part, "") if isinstance(part, str) else part for part in parts]
    console.print(Text.assemble(*((plain(text), style) for text, style in pieces)), soft_wrap=True)


def _show(console: Console, title: str, table: Table) -> None:
    """Print a table under its title, which is not broken, however long the paths in it are."""
    _print(console, (title, "table.title"))
    console.print(table)


def _row(table: Table, *cells: str, style: str | None = None) -> None:
    table.add_row(*map(plain, cells), style=style)


@contextmanager
def progress_bars(quiet: bool = False) -> Iterator[Progress]:
    """Show progress on stderr, through a callback as in `hardneg.progress`.

    On a terminal it shows bars, elsewhere lines: when a stage is finished, and every 30 seconds. `quiet` shows nothing.
    """
    if quiet:
        yield silent
        return
    console = _console(stderr=True)
    with shown(console, lambda line: _print(console, line)) as start:
        yield lambda stage, total: start(plain(stage), total)


def warn(messages: list[str]) -> None:
    """Print notes on stderr."""
    console = _console(stderr=True)
    for message in messages:
        _print(console, ("note:", "yellow"), f" {message}")


def say(message: str) -> None:
    """Print a message in bold on stderr."""
    _print(_console(stderr=True), (message, "bold"))


def summary(info: dict[str, Any], out: str, selected: bool = False) -> dict[str, Any]:
    """The summary of a run, which is printed as a table or as JSON.

    Args:
        info: the content of run.json.
        out: the run folder, as the user wrote it.
        selected: whether a selection made it just now: its time and its warnings are those of the selection.
    """
    from hardneg.data.inspect import reasons
    from hardneg.mining.select import own_warnings

    counts = info["counts"]
    wanted = info["config"]["negatives"]
    negatives = {int(k): v for k, v in counts["negatives"].items()}
    return {
        "run": out,
        "reading": info.get("reading", {}),
        "why": reasons(info.get("reading", {}), info["config"].get("read", {})),
        "queries": counts["queries"],
        "candidates": counts["candidates"],
        "negatives": sum(k * v for k, v in negatives.items()),
        "negatives_asked": wanted,
        "queries_with_fewer_negatives": sum(v for k, v in negatives.items() if k < wanted),
        "queries_without_negatives": negatives.get(0, 0),
        "queries_without_positives": counts["without_positives"],
        "queries_searched_deeper": counts["widened"],
        "index": info["resolved"]["index"],
        "recall": info["resolved"]["recall"],
        "encoder": info["resolved"].get("encoder"),
        "sources": counts.get("sources", {}),
        "verdicts": counts["verdicts"],
        "scores": info["scores"],
        "seconds": {"select": info["timings"]["select"]} if selected else info["timings"],
        "warnings": own_warnings(info) if selected else info["warnings"],
        "selected": selected,
    }


def index_text(name: str, recall: dict[str, Any]) -> str:
    """The name of the index and its measured recall, if it was measured.

    >>> index_text("ivf", {"k": 100, "measured": 0.957, "queries": 1024})
    'ivf, recall@100 0.957'
    """
    return f"{name}, recall@{recall['k']} {recall['measured']:.3f}" if recall["queries"] else name


def encoder_rows(used: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Rows of a table: the prompts that were put before the texts, whose they are, and the number format of the products.

    >>> encoder_rows({"query_prompt": "query: ", "query_prompt_from": "model", "document_prompt": ""})
    [('query prompt', "'query: ' (the model's own)")]
    """
    rows = []
    for side in ("query", "document"):
        prompt = (used or {}).get(f"{side}_prompt")
        if prompt:
            whose = "the model's own" if used and used[f"{side}_prompt_from"] == "model" else "given"
            rows.append((f"{side} prompt", f"{prompt[:60]!r}{'...' if len(prompt) > 60 else ''} ({whose})"))
    if used and "precision" in used:
        rows.append(("encoder precision", f"{used['precision']} on {used['device']}"))
    return rows


def print_summary(value: dict[str, Any]) -> None:
    """Print what `summary` returned as tables."""
    console = _console()
    selected = value.get("selected", False)
    if not selected:  # the reading was shown when it was done
        _print_reading(console, value["reading"], value.get("why", {}))
    counts = Table(show_header=False)
    counts.add_column()
    counts.add_column(justify="right")
    for label, key in (
        ("queries", "queries"),
        ("candidates", "candidates"),
        ("negatives", "negatives"),
        (f"queries with fewer than {value['negatives_asked']} negatives", "queries_with_fewer_negatives"),
        ("queries without negatives", "queries_without_negatives"),
        ("queries without a positive", "queries_without_positives"),
        ("queries searched deeper", "queries_searched_deeper"),
    ):
        _row(counts, label, f"{value[key]:,}")
    _row(counts, "index", index_text(value["index"], value["recall"]))
    for label, text in encoder_rows(value.get("encoder")):
        _row(counts, label, text)
    for name, number in value.get("sources", {}).items():
        share = 100 * number / max(1, value["candidates"])
        _row(counts, f"candidates that {name} lists", f"{number:,} ({share:.1f} %)")
    verdicts = Table(show_header=False)
    verdicts.add_column()
    verdicts.add_column(justify="right")
    verdicts.add_column(justify="right")
    for name, number in value["verdicts"].items():
        _row(verdicts, name, f"{number:,}", f"{100 * number / max(1, value['candidates']):.1f} %")
    scores = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")  # fits 80 columns
    scores.add_column("", no_wrap=True)
    names = ("mean", "min", "p5", "p25", "median", "p75", "p95", "max")
    for name in names:
        scores.add_column(name, justify="right", no_wrap=True)
    for label, key in (("positive", "positive"), ("negative", "negative"), ("positive - negative", "difference")):
        row = value["scores"][key]
        _row(scores, label, *(["-"] * len(names) if row is None else [f"{row[n]:.3f}" for n in names]))
    done = "selected" if selected else "mined"
    for title, table in ((f"{done} {value['run']}", counts), ("verdicts", verdicts), ("scores", scores)):
        _show(console, title, table)
    _print(console, "seconds: " + ", ".join(f"{k} {v:.1f}" for k, v in value["seconds"].items()))
    _print(
        console,
        f"next: hardneg diagnose {quoted(value['run'])} (how good are they?), then "
        f"hardneg export {quoted(value['run'])} --format triplet --out triplets.jsonl",
    )


def _print_reading(console: Console, reading: dict[str, Any], why: dict[str, str]) -> None:
    """Print what a source was taken for: its format, its columns, how much was in it, a line each. Runs of 0.1 say nothing of it."""
    if not reading:
        return
    said = {name: f" ({reason})" for name, reason in why.items()}
    _print(console, f"read as {reading['format']}{said.get('format', '')}")
    columns = [f"{role} = {column}{said.get(role, '')}" for role, column in reading["columns"].items()]
    columns += [f"groups = {reading['groups']} (as asked)"] if "groups" in reading else []
    if columns:
        _print(console, f"columns: {', '.join(columns)}")
    counts = reading.get("counts")
    if isinstance(counts, dict):
        names = ("queries", "documents", "pairs", "judged_negatives", "groups")
        wanted = [name for name in names if isinstance(counts.get(name), int) and counts[name]]
        _print(console, "found: " + ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in wanted))


def print_inspection(value: dict[str, Any]) -> None:
    """Print what a source was taken for."""
    console = _console()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    _row(table, "format", f"{value['format']} ({value['why']['format']})")
    for role, column in value["columns"].items():
        _row(table, role, f"column {column} ({value['why'][role]})")
    if "groups" in value:
        _row(table, "groups are", value["groups"])
    for name, count in value["counts"].items():
        _row(table, name.replace("_", " "), f"{count:,}")
    _show(console, f"inspected {value['source']}", table)
    for example in value["examples"]:
        group = "" if example["group"] is None else f"  (group {example['group']})"
        _print(console, ("query", "bold"), f" {example['id']}: {example['query']}{group}")
        for kind, label in (("positives", "  positive"), ("judged_negatives", "  judged negative")):
            for text in example[kind]:
                _print(console, (label, "dim"), f" {text}")
    for warning in value["warnings"]:
        _print(console, ("note:", "yellow"), f" {warning}")


def print_evaluation(value: dict[str, Any], source: str) -> None:
    """Print the measures of an encoder on a dataset."""
    console = _console()
    table = Table()
    table.add_column("measure")
    table.add_column("mean", justify="right")
    table.add_column("standard error", justify="right")
    for name, mean in value["means"].items():
        _row(table, name, f"{mean:.4f}", f"{value['standard_errors'][name]:.4f}")
    _show(console, f"evaluated {source}", table)
    skipped = value["queries_without_positives"]
    more = f"; {skipped:,} more queries have no positive in this split" if skipped else ""
    _print(console, f"{value['queries']:,} queries, {value['documents']:,} documents{more}")
    for label, text in encoder_rows(value.get("encoder")):
        _print(console, f"{label}: {text}")
    warn(value.get("warnings", []))


class LiveNumbers:
    """A callback that prints a line of a training's numbers every few seconds, on stderr, above the bars.

    Args:
        seconds: the shortest time between two lines. Evaluations and refreshes are always printed.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.console, self.seconds, self.last = _console(stderr=True), seconds, time.perf_counter()

    def log(self, step: int, values: dict[str, float]) -> None:
        measures = {name.partition("/")[2]: value for name, value in values.items() if name.startswith("evaluation/")}
        if measures:
            measures.pop("seconds", None)
            first = next(iter(measures))  # of each source of a mixture, only what decides
            shown = {name: value for name, value in measures.items() if "/" not in name or name.endswith(f"/{first}")}
            text = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
            _print(self.console, (f"step {step:,}: {text}", "bold"))
            return
        now = time.perf_counter()
        if now - self.last < self.seconds and "swap_seconds" not in values:
            return
        self.last = now
        parts = [f"loss {values['loss']:.4f}", f"temperature {values['temperature']:.3f}"]
        parts += [f"masked {values['masked']:.1%}", f"positive {values['positive']:.3f}"]
        for name, form in (
            ("negative", "{:.3f}"), ("margin", "{:+.3f}"), ("effective_rank", "{:.0f}"), ("bank_rows", "{:,.0f}"),
            ("bank_age", "{:.1f}"), ("generation", "{:.0f}"), ("age", "{:.0f}"), ("drift", "{:.3f}"),
        ):  # fmt: skip
            if name in values:
                parts.append(f"{name.replace('_', ' ')} " + form.format(values[name]))
        _print(self.console, f"step {step:,}: " + ", ".join(parts))

    def close(self) -> None:
        pass


def _show_sources(console: Console, best: dict[str, float], names: Sequence[str]) -> None:
    """The measures of each source of a mixture in the best evaluation, if it is one."""
    sources = dict.fromkeys(name.partition("/")[0] for name in best if "/" in name)
    if not sources:
        return
    table = Table()
    table.add_column("source")
    for name in names:
        table.add_column(plain(name), justify="right")
    for source in sources:
        _row(table, source, *(f"{best[f'{source}/{name}']:.4f}" for name in names))
    _row(table, "mean", *(f"{best[name]:.4f}" for name in names), style="bold")
    _show(console, f"step {int(best['step']):,}, each source", table)


def _times(count: int) -> str:
    """How often something happened.

    >>> _times(1), _times(2)
    ('once', '2 times')
    """
    return "once" if count == 1 else f"{count:,} times"


def print_training(value: dict[str, Any], out: str, further: Sequence[str] = ()) -> None:
    """Print the results of a training.

    Args:
        value: the content of train.json.
        out: the folder of the training.
        further: the commands to type next.
    """
    console = _console()
    if value["evaluations"]:
        table = Table()
        names = [name for name in value["evaluations"][0] if name != "step" and "/" not in name]
        for name in ("step", *names):
            table.add_column(plain(name), justify="right")
        if value.get("before") is not None:
            _row(table, "before", *(f"{value['before'][name]:.4f}" for name in names))
        for row in value["evaluations"]:
            mark = "bold" if row == value["best"] else None
            step = f"{int(row['step']):,}{' (best)' if mark else ''}"
            _row(table, step, *(f"{row[name]:.4f}" for name in names), style=mark)
        _show(console, f"trained {out}", table)
        _show_sources(console, value["best"], names)
    generations = len(value["generations"])
    refreshes = f", negatives mined again {_times(generations)}" if generations else ""
    early = ", stopped early: evaluations got no better" if value.get("stopped_early") else ""
    _print(console, f"{value['steps']:,} steps in {value['seconds']:.1f} s{refreshes}{early}")
    which = "best" if value["best"] is not None else "last"
    _print(console, f"the encoder is in {out}/{which}, the numbers are in {out}/log.jsonl")
    for command in further:
        _print(console, f"next: {command}")

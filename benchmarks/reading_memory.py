"""What each further document costs while a corpus is read: anonymous memory, and the seconds of the processor.

    python benchmarks/reading_memory.py

Documents with ids of 9 bytes and 188 characters of text go through `Builder` into a folder: one by one, and as columns of 8,192.
The most anonymous memory is sampled every 10 ms, at two sizes. The slope between them is what a document costs beside blocks
that do not grow.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import in_own_process, machine, status_mb, versions

SIZES = (100_000, 400_000)
AT_ONCE = 8192


def measure(how: str, count: int) -> dict[str, float]:
    from hardneg import Pairs
    from hardneg.data.builder import Builder
    from hardneg.storage.arrow import strings

    most, done = status_mb("RssAnon"), threading.Event()

    def sample() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, status_mb("RssAnon"))

    with tempfile.TemporaryDirectory() as folder:
        builder = Builder(Path(folder) / "dataset")
        builder.relate(builder.add_query("q", "question", where="here"), 0, 1.0)
        watch = threading.Thread(target=sample)
        before, worked = most, time.process_time()
        watch.start()
        for start in range(0, count, AT_ONCE):
            rows = range(start, min(start + AT_ONCE, count))
            ids = [f"d{i:08d}" for i in rows]
            texts = [f"{i:08d} " + "a text of many words " * 8 + "and an end." for i in rows]
            if how == "columns":
                arrivals = builder.look_up("document", strings(texts), ids=strings(ids))
                assert arrivals is not None
                builder.add_many("document", arrivals)
            else:
                for id, text in zip(ids, texts, strict=True):
                    builder.add_document(id, text, where="here")
        Pairs.from_contents(builder.finish("many"))
        worked = time.process_time() - worked
        done.set()
        watch.join()
    return {"memory": most - before, "worked": worked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]))))
        return
    print(machine())
    print(versions("hardneg", "pyarrow"))
    small, large = SIZES
    print(f"| how | MB at {small:,} | MB at {large:,} | bytes of each further document | CPU seconds for {large:,} |")
    print("| --- | --- | --- | --- | --- |")
    for how in ("one by one", "columns"):
        at = [in_own_process(__file__, "--one", how, str(count)) for count in SIZES]
        slope = (at[1]["memory"] - at[0]["memory"]) * 2**20 / (large - small)
        print(
            f"| {how} | {at[0]['memory']:.1f} | {at[1]['memory']:.1f} | {slope:.0f} | {at[1]['worked']:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

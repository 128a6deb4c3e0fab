"""float32 products by torch's library or by numpy's: which one, on how many threads, and that answers do not depend on it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hardneg import products
from hardneg.index.exact import ExactIndex
from hardneg.index.ivf import IVFIndex
from hardneg.index.vectors import workers
from hardneg.products import choose_numpy, matrix_product, numpy_is_faster, numpy_multiplies, one_thread_each

INTEL = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: AuthenticAMD is not the maker\n"
AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\n"


@pytest.mark.parametrize(("said", "expected"), [(AMD, True), (INTEL, False), ("", False), (None, False)])
def test_numpy_multiplies_on_processors_of_amd(
    said: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said is not None:
        (tmp_path / "cpuinfo").write_text(said)
    monkeypatch.setattr(products, "_PROCESSOR", tmp_path / "cpuinfo")
    monkeypatch.setattr(products, "_libraries", lambda: ("a library",))
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert numpy_is_faster.__wrapped__() is expected
    # Without a library whose threads can be set, or where torch has the same one, torch multiplies.
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not numpy_is_faster.__wrapped__()
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(products, "_libraries", lambda: ())
    assert not numpy_is_faster.__wrapped__()


@pytest.mark.parametrize("numpys", [True, False])
def test_both_libraries_multiply_alike(numpys: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(products, "numpy_is_faster", lambda: numpys)
    monkeypatch.setattr(products.np, "matmul", lambda *a, f=np.matmul, **k: (asked.append(1), f(*a, **k))[1])
    left, right = torch.randn(70, 30), torch.randn(50, 30).t()
    exact = (left.double() @ right.double()).float()
    out = torch.empty(70, 50)
    for bias in (None, torch.randn(70, 1), torch.randn(1, 50)):
        with one_thread_each() as chosen:
            found = matrix_product(left, right, bias, out)
        assert chosen == numpys
        assert found is out
        assert (found - (exact if bias is None else exact + bias)).abs().max() < 1e-4
    assert matrix_product(left.bfloat16(), right.bfloat16()).dtype == torch.bfloat16
    assert len(asked) == (3 if numpys else 0)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("kind", [ExactIndex, IVFIndex])
def test_the_answer_does_not_depend_on_the_library(kind: type, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    documents = generator.standard_normal((1500, 24)).astype(np.float32)
    queries = np.concatenate([documents[:100], generator.standard_normal((150, 24)).astype(np.float32)])
    made = kind(documents, metric, kernel="float32")
    answers = []
    for numpys in (True, False):
        monkeypatch.setattr(products, "numpy_is_faster", lambda numpys=numpys: numpys)
        answers.append(made.search(queries, 12))
    assert np.array_equal(answers[0].documents, answers[1].documents)
    assert np.array_equal(answers[0].scores, answers[1].scores)


class _Library:
    """What stands for a library of matrix products: it has a number of threads."""

    def __init__(self) -> None:
        self.threads, self.set_to = 7, list[int]()

    def get_num_threads(self) -> int:
        return self.threads

    def set_num_threads(self, threads: int) -> None:
        self.threads = threads
        self.set_to.append(threads)


def test_one_thread_until_the_last_search_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    library = _Library()
    monkeypatch.setattr(products, "_libraries", lambda: (library,))
    monkeypatch.setattr(products, "numpy_is_faster", lambda: True)

    def fails() -> None:
        with one_thread_each():
            assert library.threads == 1
            with workers(2):
                pass
            assert library.threads == 1
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert library.set_to == [1, 7]
    # Two threads, of which the one that began first ends first.
    began, end = threading.Event(), threading.Event()

    def first() -> None:
        choose_numpy(True)  # as a pool of the main thread does
        with one_thread_each():
            began.set()
            end.wait(60)

    thread = threading.Thread(target=first)
    thread.start()
    assert began.wait(60)
    with one_thread_each():
        end.set()
        thread.join()
        assert library.threads == 1
    assert library.set_to == [1, 7, 1, 7]


def test_work_of_other_threads_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh in the background, while the training forks the processes that load its batches."""
    library, seen = _Library(), list[bool]()
    monkeypatch.setattr(products, "_libraries", lambda: (library,))
    monkeypatch.setattr(products, "numpy_is_faster", lambda: True)
    monkeypatch.setattr(products, "numpy_is_faster", lambda: True)

    def search() -> None:
        with workers(2) as pool:
            seen.extend(pool.map(lambda _: numpy_multiplies(), range(4)))

    with one_thread_each():  # also while the main thread searches
        thread = threading.Thread(target=search)
        thread.start()
        thread.join()
    assert seen == [False] * 4
    search()
    assert seen[4:] == [True] * 4
    assert not numpy_multiplies()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    library = _Library()
    monkeypatch.setattr(products, "_libraries", lambda: (library,))
    monkeypatch.setattr(products, "numpy_is_faster", lambda: True)

    def child() -> int:
        found = library.threads
        with one_thread_each():
            inside = library.threads
        return 10 * found + inside if library.threads == found else 0

    with one_thread_each(), products._lock:  # as if another thread held it
        process = os.fork()
        if process == 0:
            os._exit(child())
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 71
    assert library.threads == 7


def test_the_library_of_numpy_is_found_here() -> None:
    found = products._libraries()
    if not found:
        pytest.skip("numpy has no OpenBLAS of its own here: install numpy's wheel")
    before = [library.get_num_threads() for library in found]
    with one_thread_each():
        assert [library.get_num_threads() for library in found] == [1] * len(found)
    assert [library.get_num_threads() for library in found] == before


@pytest.mark.parametrize("chosen", ["float64", "bfloat16", "meta"])
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_what_tensors_are_by_default_does_not_matter(chosen: str, metric: str) -> None:
    documents = np.random.default_rng(0).standard_normal((500, 24)).astype(np.float32)

    def found() -> list[Any]:
        made = (IVFIndex(documents, metric, threads=2), ExactIndex(documents, metric, "float32"))
        return [each.tolist() for index in made for each in index.search(documents[:9], 5)]

    expected = found()
    before = torch.get_default_dtype()
    try:
        if chosen != "meta":
            torch.set_default_dtype(getattr(torch, chosen))
        with torch.device("meta" if chosen == "meta" else "cpu"):
            assert found() == expected
            product = matrix_product(torch.from_numpy(documents), torch.from_numpy(documents.T))
            assert (product.dtype, product.device.type) == (torch.float32, "cpu")
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_arrays_with_one_row_or_column_may_run_backwards(metric: str) -> None:
    documents = np.random.default_rng(0).standard_normal((40, 1)).astype(np.float32)
    for index in (ExactIndex, IVFIndex):
        expected = index(documents, metric).search(documents, 3)
        found = index(documents[:, ::-1], metric).search(documents[:, ::-1], 3)
        assert np.array_equal(found.documents, expected.documents)
        one = documents.reshape(1, 40)[::-1]
        assert index(one, metric).search(one, 1).documents.tolist() == [[0]]

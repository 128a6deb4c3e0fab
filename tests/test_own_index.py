"""An index of the user's own: it is over the same vectors, what it returns is checked, and nothing it is given is ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hardneg.index.exact as exact
from hardneg.errors import UsageError
from hardneg.index.base import METRICS, Neighbors, checked_answer
from hardneg.index.cuda import DeviceIndex
from hardneg.index.exact import ExactIndex
from hardneg.index.factory import make_index, tuned
from hardneg.index.hnsw import HNSWIndex
from hardneg.index.ivf import IVFIndex
from hardneg.index.recall import Recall
from hardneg.index.vectors import MOST_THREADS, VectorStore
from hardneg.storage.arrays import Rows, Sharded

from .conftest import unit
from .emulated_int8 import emulate_int8
from .test_approximate import clustered


class Own(VectorStore):
    """Exact search, with something done to the answer."""

    name = "own"
    spoil: Callable[[Any], Any] = staticmethod(lambda found: found)

    def search(self, queries: NDArray[np.floating], k: int, progress: Any = None) -> Neighbors:
        found = ExactIndex(self.documents, self.metric, "float32").search(queries, k)
        return self.spoil(found)


def spoiled(spoil: Callable[[Any], Any]) -> type[Own]:
    return type("Spoiled", (Own,), {"spoil": staticmethod(spoil)})


def changed(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array[3, -1] = value
    return array


def with_rows(change: Callable[[np.ndarray], Any]) -> Callable[[Neighbors], Any]:
    return lambda found: Neighbors(found.scores, change(found.documents))


def with_scores(change: Callable[[np.ndarray], Any]) -> Callable[[Neighbors], Any]:
    return lambda found: Neighbors(change(found.scores), found.documents)


WRONG = {
    "nothing": (lambda found: None, "None, expected Neighbors"),
    "tuple": (lambda found: tuple(found), "of the type 'tuple'"),
    "lists": (lambda found: Neighbors(found.scores.tolist(), found.documents.tolist()), "of two arrays"),
    "fewer rows": (lambda found: Neighbors(found.scores[:-1], found.documents[:-1]), r"the shape \[49, 5\], expected \[50, 5\]"),
    "fewer neighbors": (lambda found: Neighbors(found.scores[:, 1:], found.documents[:, 1:]), r"the shape \[50, 4\]"),
    "flat": (lambda found: Neighbors(found.scores.ravel(), found.documents.ravel()), r"the shape \[250\]"),
    "other shapes": (with_rows(lambda rows: rows[:, :2]), r"documents of the shape \[50, 2\]"),
    "float rows": (with_rows(lambda rows: rows.astype(np.float32)), "documents in the number format float32, expected int32"),
    "unsigned rows": (with_rows(lambda rows: rows.astype(np.uint32)), "documents in the number format uint32"),
    "boolean rows": (with_rows(lambda rows: rows > 0), "documents in the number format bool"),
    "row too large": (with_rows(lambda rows: changed(rows, 300)), "in the corpus of 300 documents, for 1 of 50 queries: queries 3"),
    "row below -1": (with_rows(lambda rows: changed(rows, -2)), "not in the corpus"),
    "huge row": (with_rows(lambda rows: changed(rows.astype(np.int64), 2**32 + 1)), "not in the corpus"),
    "nan": (with_scores(lambda scores: changed(scores, np.nan)), "NaN or infinite, for 1 of 50 queries: queries 3"),
    "infinite": (with_scores(lambda scores: changed(scores, -np.inf)), "NaN or infinite"),
    "score of nothing": (with_rows(lambda rows: changed(rows, -1)), "other than -inf where there is no document"),
    "double scores": (with_scores(lambda scores: scores.astype(np.float64)), "scores in the number format float64, expected float32"),
    "ascending": (lambda found: Neighbors(found.scores[:, ::-1], found.documents[:, ::-1]), "not in the order of their scores"),
    "repeated": (with_rows(lambda rows: np.repeat(rows[:, :1], 5, axis=1)), "documents that repeat, for 50 of 50"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), WRONG.values(), ids=WRONG)
def test_wrong_answers_are_refused(spoil: Callable[[Any], Any], message: str) -> None:
    documents = clustered(300)
    with pytest.raises(UsageError, match=f"the search of the index Spoiled returned .*{message}"):
        make_index(spoiled(spoil), documents, queries=documents[:50], k=5)


def test_right_answers_are_taken() -> None:
    documents = clustered(300)
    index, recall = make_index(Own, documents, queries=documents[:50], k=5)
    assert recall == Recall(1.0, 0.0, 0.95, 5, 50)
    wide = make_index(spoiled(with_rows(lambda rows: rows.astype(np.int64))), documents, queries=documents[:50], k=5)[0]
    found = wide.search(documents[:4], 5)
    assert checked_answer(wide, found, 4, 5).documents.dtype == np.int32
    nothing = Neighbors(np.full((4, 5), -np.inf, np.float32), np.full((4, 5), -1, np.int32))
    assert checked_answer(index, nothing, 4, 5).documents.tolist() == nothing.documents.tolist()
    none = Neighbors(np.empty((0, 5), np.float32), np.empty((0, 5), np.int32))
    assert checked_answer(index, none, 0, 5).scores.shape == (0, 5)


@pytest.mark.parametrize("metric", METRICS)
def test_an_index_of_other_vectors_is_refused(metric: str) -> None:
    documents = clustered(300)
    one_changed = documents.copy()
    one_changed[17] = documents[18]
    shifted = np.roll(documents, 1, axis=0)
    for other in (documents[::-1].copy(), shifted, one_changed, -documents, documents + np.float32(0.01)):
        with pytest.raises(UsageError, match=r"ExactIndex holds other vectors than the corpus: .* rows differ"):
            make_index(ExactIndex(other, metric), documents, metric)
    with pytest.raises(UsageError, match="1 of 300 compared rows differ, the rows 17"):
        make_index(ExactIndex(one_changed, metric), documents, metric)
    broken = ExactIndex(documents, metric)
    broken.documents = documents * np.float32(np.nan)
    with pytest.raises(UsageError, match="300 of 300 compared rows differ"):
        make_index(broken, documents, metric)


def test_an_index_of_the_same_vectors_is_taken() -> None:
    documents = 3 * clustered(300)
    half = documents.astype(np.float16)
    for index, corpus, metric in (
        (ExactIndex(documents.copy(), "ip"), documents, "ip"),
        (ExactIndex(half, "l2"), documents, "l2"),
        (ExactIndex(documents, "l2"), half, "l2"),
        (ExactIndex(unit(documents)), documents, "cosine"),  # normalized, which cosine does not see
        (ExactIndex(Sharded([half[:100], half[100:]])), Rows(documents, np.arange(300)), "cosine"),
        (DeviceIndex(documents.copy(), device="cpu"), documents, "cosine"),
    ):
        assert make_index(index, corpus, metric) == (index, Recall(1.0, 0.0, 0.95, 100, 0))


def test_a_subclass_of_an_exact_index_is_measured() -> None:
    class First(ExactIndex):
        def search(self, queries: NDArray[np.floating], k: int, progress: Any = None) -> Neighbors:
            rows = np.tile(np.arange(k, dtype=np.int32), (len(queries), 1))
            scores = self.pair_scores(queries, rows)
            order = np.argsort(-scores, axis=1)
            return Neighbors(np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1))

    assert make_index(First, clustered(300), k=5)[1].measured < 0.1


def test_nothing_is_ignored() -> None:
    documents = clustered(300)
    with pytest.raises(UsageError, match="the setting 'lists' has no effect with recall=1"):
        make_index("ivf", documents, recall=1, lists=3)
    with pytest.raises(UsageError, match="the setting 'lists' has no effect on an index of your own"):
        make_index(Own, documents, lists=3)
    with pytest.raises(UsageError, match="unknown setting 'list' of the index 'ivf'. Did you mean 'lists'"):
        make_index("ivf", documents, list=3)
    for given in (Own, Own(documents), ExactIndex(documents)):
        with pytest.raises(UsageError, match="the device 'cuda' has no effect on the index (Own|ExactIndex)"):
            make_index(given, documents, device="cuda")
    assert make_index("exact", documents, device="meta", threads=3)[0].threads == 3
    assert make_index("ivf", documents, k=5, lists=7)[0].lists == 7  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["ivf", "hnsw"])
def test_without_queries_an_index_is_tuned_on_documents(name: str) -> None:
    documents = clustered(300)
    _, recall = make_index(name, documents, queries=documents[:0], k=5)
    assert recall.measured >= 0.9
    assert recall.queries == 150
    own = make_index(Own, documents, queries=documents[:0], k=5)[1]
    assert (own.measured, own.queries) == (1.0, 300)
    index = IVFIndex(documents)
    assert tuned(index, documents[:0], 5, 0.9).queries == 150


@pytest.mark.parametrize("threads", [0, -1, MOST_THREADS + 1, 100_000, 2.5, True, "2"])
def test_number_of_threads(threads: Any) -> None:
    """So many threads once ended the process."""
    documents = clustered(50)
    for build in (ExactIndex, IVFIndex, HNSWIndex, lambda *a, **b: DeviceIndex(*a, device="cpu", **b)):
        with pytest.raises(UsageError, match=r"threads=.*from 1 to 1,024"):
            build(documents, threads=threads)
    for name in ("exact", "ivf", "hnsw"):
        with pytest.raises(UsageError, match=r"threads=.*from 1 to 1,024"):
            make_index(name, documents, k=5, threads=threads)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda d: HNSWIndex(d, links=0), "links=0: it must be a whole number from 2 to 1,024"),
        (lambda d: HNSWIndex(d, links=1 << 20), "links=1048576"),
        (lambda d: HNSWIndex(d, ef_construction=-5), "ef_construction=-5"),
        (lambda d: HNSWIndex(d, ef_search=2**40), "ef_search="),
        (lambda d: HNSWIndex(d, ef_search=1.5), "ef_search=1.5"),
        (lambda d: IVFIndex(d, probe_margin=float("nan")), "probe_margin=nan: it must be a number, 0 or more"),
        (lambda d: IVFIndex(d, probe_margin=-0.1), "probe_margin=-0.1"),
        (lambda d: IVFIndex(d, lists=2.0), "lists=2.0"),
    ],
)
def test_settings_that_native_code_cannot_take(build: Callable[[np.ndarray], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(clustered(50))


def test_resident_says_what_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 pads vectors to a multiple of four components, and the last tile is shorter."""
    emulate_int8(monkeypatch)
    monkeypatch.setattr(VectorStore, "tile_rows", 100)
    documents = clustered(250, dimension=21)
    for allowed in (250 * 24, 250 * 24 - 1, 250 * 21):
        monkeypatch.setattr(exact, "_CACHE_BYTES", allowed)
        index = ExactIndex(documents, kernel="int8", threads=1)
        index.search(documents[:3], 2)
        assert index.resident == (len(index._cached) == 3) == (allowed >= 250 * 24)

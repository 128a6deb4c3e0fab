"""Features that a run keeps: the same results with them and without them, whatever happens to their files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from hardneg.errors import RunError
from hardneg.false_negatives.calibrate import calibrate
from hardneg.false_negatives.features import KEPT, SHARED_FEATURES, PairFeatures
from hardneg.false_negatives.model import Posterior
from hardneg.false_negatives.shared_neighbors import NeighborGraph, Votes
from hardneg.mining import parts, reopen, run
from hardneg.mining.mine import mine
from hardneg.mining.options import MineOptions
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import Run
from hardneg.mining.select import SelectOptions, select
from hardneg.storage.arrays import Ragged

from .conftest import WORDS, unit, write_jsonl

TOPICS, DOCUMENTS, QUERIES = 12, 240, 150
NAMES = sorted(KEPT)


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three parts (of 50 queries each), some queries without a positive."""
    folder = tmp_path_factory.mktemp("kept")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((TOPICS, 16))
    topic, asked = np.arange(DOCUMENTS) % TOPICS, np.arange(QUERIES) % TOPICS
    data = folder / "data"
    words = [f"{' '.join(rng.choice(WORDS, 5))} {i}" for i in range(DOCUMENTS + QUERIES)]
    write_jsonl(data / "corpus.jsonl", [{"_id": f"d{i}", "text": words[i]} for i in range(DOCUMENTS)])
    write_jsonl(data / "queries.jsonl", [{"_id": f"q{i}", "text": words[DOCUMENTS + i]} for i in range(QUERIES)])
    known = [(i, rng.choice(np.flatnonzero(topic == asked[i]))) for i in range(QUERIES) if i % 10]
    (data / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{d}\t1" for i, d in known)]
    (data / "qrels" / "train.tsv").write_text("\n".join(lines) + "\n")
    np.save(folder / "q.npy", unit(centres[asked] + rng.standard_normal((QUERIES, 16)) * 0.6))
    np.save(folder / "d.npy", unit(centres[topic] + rng.standard_normal((DOCUMENTS, 16)) * 0.6))
    options = MineOptions(query_embeddings=str(folder / "q.npy"), corpus_embeddings=str(folder / "d.npy"), depth=40)
    with pytest.MonkeyPatch.context() as patch:
        for module in (parts, run):
            patch.setattr(module, "PART_ROWS", 50)
        mine(data, folder / "run", options)
    return folder / "run"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (parts, run, reopen):
        monkeypatch.setattr(module, "PART_ROWS", 50)


@pytest.fixture
def here(mined: Path, tmp_path: Path) -> Path:
    """A copy of the run, without features."""
    copy = tmp_path / "run"
    shutil.copytree(mined, copy, ignore=shutil.ignore_patterns("features"))
    return copy


def features_of(folder: Path, *, kept: bool = True) -> dict[str, np.ndarray]:
    """All features that are kept, of all candidates; without `kept`, they are computed and nothing is written."""
    reopened = Reopened(Run(folder))
    if not kept:
        reopened.context.kept = None
    features = PairFeatures(reopened.context)
    parts = []
    for part in reopened:
        halves = np.array_split(np.arange(len(part.candidates.queries)), 2)
        blocks = [features.of(NAMES, part.candidates.rows(rows)) for rows in halves]
        parts.append({name: np.concatenate([block[name] for block in blocks]) for name in NAMES})
    return {name: np.concatenate([part[name] for part in parts]) for name in NAMES}


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The content of a file with one bit flipped, or cut off somewhere."""
    place = int(rng.integers(len(content)))
    if rng.random() < 0.3:
        return content[:place]
    flipped = bytearray(content)
    flipped[place] ^= 1 << int(rng.integers(8))
    return bytes(flipped)


def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail whenever something is computed that a run keeps."""

    def refuse(*_: object) -> None:
        raise AssertionError("this was computed again")

    monkeypatch.setattr(NeighborGraph, "of", refuse)
    monkeypatch.setattr(Votes, "of", refuse)


def test_kept_features_equal_computed_ones(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = features_of(here, kept=False)
    assert not (here / "features").exists()
    first = features_of(here)
    assert len(list((here / "features").glob("part-*.parquet"))) == 3
    no_work(monkeypatch)
    again = features_of(here)
    for name in NAMES:
        np.testing.assert_array_equal(first[name], computed[name])
        np.testing.assert_array_equal(again[name], computed[name])


def test_chosen_columns_are_read_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features_of(here)
    no_work(monkeypatch)
    reopened = Reopened(Run(here))
    candidates = reopened.part(1).candidates
    whole = PairFeatures(reopened.context).of(SHARED_FEATURES, candidates)
    columns = np.random.default_rng(0).integers(-1, candidates.documents.shape[1], (50, 7))
    found = PairFeatures(reopened.context).of(SHARED_FEATURES, candidates, columns)
    for name in SHARED_FEATURES:
        expected = np.where(columns < 0, 0, np.take_along_axis(whole[name], np.maximum(columns, 0), 1))
        np.testing.assert_array_equal(found[name], expected)


def test_features_of_other_positives_are_computed(here: Path) -> None:
    features_of(here)
    reopened = Reopened(Run(here))
    candidates = reopened.part(0).candidates
    none = Ragged.from_pairs(np.empty(0, np.int64), np.empty(0, np.int64), QUERIES)
    hidden = PairFeatures(reopened.context, none).of(["shared_query", "shared_positive"], candidates)
    np.testing.assert_array_equal(hidden["shared_positive"], hidden["shared_query"])


def posterior(folder: Path) -> str:
    calibrate(folder).save(folder.parent / "p.json")
    return f"posterior:{folder.parent / 'p.json'}"


def test_a_selection_has_them_and_is_the_same(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = posterior(here)
    bare = shutil.copytree(here, tmp_path / "bare", ignore=shutil.ignore_patterns("features"))
    select(bare, SelectOptions(add_filters=(spec,)))
    no_work(monkeypatch)
    select(here, SelectOptions(add_filters=(spec,)), tmp_path / "other")
    select(here, SelectOptions(add_filters=(spec,)))
    again = calibrate(tmp_path / "other")
    assert again.weights == Posterior.load(tmp_path / "p.json").weights
    wanted = {path.relative_to(bare): path.read_bytes() for path in bare.rglob("*.parquet")}
    for folder in (here, tmp_path / "other"):
        for name, content in wanted.items():
            assert (folder / name).read_bytes() == content, name


def test_damaged_files_are_never_believed(here: Path) -> None:
    """Bits flipped, ends cut off, files exchanged: the features are computed again, and written."""
    right = features_of(here)
    rng = np.random.default_rng(0)
    files = sorted((here / "features").iterdir())
    contents = {path: path.read_bytes() for path in files}
    for path in files:
        for _ in range(3):
            path.write_bytes(damaged(contents[path], rng))
            found = features_of(here)
            for name in NAMES:
                np.testing.assert_array_equal(found[name], right[name], err_msg=path.name)
    parts = [path for path in files if path.suffix == ".parquet"]
    parts[0].write_bytes(contents[parts[1]])
    np.testing.assert_array_equal(features_of(here)["shared_votes"], right["shared_votes"])


def test_features_of_another_run_are_never_used(here: Path, mined: Path, tmp_path: Path) -> None:
    """The same texts and the same candidates, other labels: votes and positives differ."""
    features_of(here)
    data = shutil.copytree(mined.parent / "data", tmp_path / "data")
    lines = (data / "qrels" / "train.tsv").read_text().splitlines()
    (data / "qrels" / "train.tsv").write_text("\n".join(lines[:-40]) + "\n")
    vectors = {
        f"{side}_embeddings": str(mined.parent / f"{side[0].replace('c', 'd')}.npy") for side in ("query", "corpus")
    }
    mine(data, tmp_path / "less", MineOptions(**vectors, depth=40))
    right = features_of(tmp_path / "less", kept=False)
    shutil.copytree(here / "features", tmp_path / "less" / "features")
    found = features_of(tmp_path / "less")
    for name in NAMES:
        np.testing.assert_array_equal(found[name], right[name])


def test_a_place_that_cannot_be_written_to_changes_nothing(here: Path) -> None:
    right = features_of(here, kept=False)
    (here / "features").write_text("not a folder")
    found = features_of(here)
    (here / "features").unlink()
    features_of(here)
    names = [path.name for path in (here / "features").iterdir()]
    for make in (os.mkdir, os.mkfifo):
        shutil.rmtree(here / "features")
        (here / "features").mkdir()
        for name in names:
            make(here / "features" / name)
        again = features_of(here)
        for name in NAMES:
            np.testing.assert_array_equal(again[name], right[name])
    for name in NAMES:
        np.testing.assert_array_equal(found[name], right[name])


def test_nothing_is_written_through_links(here: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", here / "features")
    with pytest.raises(RunError, match="symbolic link"):
        features_of(here)
    assert not list((tmp_path / "elsewhere").iterdir())
    (here / "features").unlink()
    (here / "features").mkdir()
    (tmp_path / "precious").write_text("precious")
    os.symlink(tmp_path / "precious", here / "features" / "part-00000.parquet")
    with pytest.raises(RunError, match="symbolic link"):
        features_of(here)
    assert (tmp_path / "precious").read_text() == "precious"

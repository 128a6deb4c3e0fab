"""Groups of what positives connect, against a search from each text in turn."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cli.main import cli
from hardneg import DataError, ReadOptions, Run, UsageError, mine, read_pairs
from hardneg.data.inspect import inspect
from hardneg.data.joined import components, join_positives
from hardneg.storage.arrays import Ragged

JOINED = ReadOptions(group_positives=True)

# a-b and b-c are labelled, so a-c is one as well; the label of c-a says the contrary. d-e is another group; f stands alone.
QUORA = [
    ("how do I learn to cook", "how can I learn cooking", 1),
    ("How can I learn  cooking", "what is a way to cooking skills", 1),
    ("what is a way to cooking skills", "how do I learn to cook", 0),
    ("where is Ulm", "in which country lies Ulm", 1),
    ("where is Ulm", "how old is the moon", 0),
]


@pytest.fixture
def quora(tmp_path: Path) -> Path:
    path = tmp_path / "quora.tsv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["id", "question1", "question2", "is_duplicate"])
        writer.writerows((i, *row) for i, row in enumerate(QUORA))
    return path


def naive(edges: list[tuple[int, int]], nodes: int) -> list[set[int]]:
    """For each node, all that can be reached from it."""
    found = []
    for start in range(nodes):
        reached, todo = {start}, [start]
        while todo:
            here = todo.pop()
            for a, b in edges:
                for one, other in ((a, b), (b, a)):
                    if one == here and other not in reached:
                        reached.add(other)
                        todo.append(other)
        found.append(reached)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_components_are_what_can_be_reached(seed: int) -> None:
    rng = random.Random(seed)
    nodes = rng.randint(1, 40)
    edges = [(rng.randrange(nodes), rng.randrange(nodes)) for _ in range(rng.randint(0, nodes))]
    left, right = (np.array([edge[i] for edge in edges], np.int64) for i in (0, 1))
    assert components(left, right, nodes).tolist() == [min(reached) for reached in naive(edges, nodes)]


def test_components_of_a_long_chain_in_the_worst_order() -> None:
    order = np.random.default_rng(0).permutation(5000)
    assert (components(order[:-1], order[1:], 5000) == 0).all()


@pytest.mark.parametrize("seed", range(10))
def test_groups_join_equal_texts_and_leave_empty_ones_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, documents = rng.integers(0, 9, 8), rng.integers(0, 9, 12)  # keys; 0 is an empty text
    lists = [sorted(set(rng.integers(0, 12, rng.integers(0, 3)).tolist())) for _ in queries]
    positives = Ragged.from_pairs(
        np.repeat(np.arange(8), [len(each) for each in lists]),
        np.array([row for each in lists for row in each], np.int64),
        8,
    )
    nothing = Ragged.from_pairs(np.empty(0, np.int64), np.empty(0, np.int64), 8)
    joined = join_positives(positives, nothing, queries, documents)
    groups = [*joined.document_groups.tolist(), *joined.query_groups.tolist()]
    keys = [*documents.tolist(), *queries.tolist()]
    edges = [(12 + q, d) for q, each in enumerate(lists) for d in each]
    edges += [(i, j) for i in range(20) for j in range(i) if keys[i] == keys[j] != 0]
    for i, reached in enumerate(naive(edges, 20)):
        assert {j for j in range(20) if groups[j] == groups[i]} == reached
    assert list(dict.fromkeys(groups)) == list(range(len(set(groups))))  # in the order of their first text
    names = [key if key != 0 else -1 - i for i, key in enumerate(keys)]
    labelled = {(names[12 + q], names[d]) for q, each in enumerate(lists) for d in each}
    same = {(names[12 + q], names[d]) for q in range(8) for d in range(12) if groups[12 + q] == groups[d]}
    beyond = sum(a != b for a, b in same - labelled)
    assert joined.notes.get("joined_relations", 0) == beyond


def test_quora_is_read_as_groups(quora: Path) -> None:
    pairs = read_pairs(quora, JOINED)
    assert pairs.query_groups is not None
    assert pairs.document_groups is not None
    by_text = dict(zip(pairs.queries, pairs.query_groups.tolist(), strict=True))
    documents = dict(zip(pairs.documents, pairs.document_groups.tolist(), strict=True))
    cooking = by_text["how do I learn to cook"]
    assert documents == {
        "how can I learn cooking": cooking,
        "what is a way to cooking skills": cooking,
        "how do I learn to cook": cooking,
        "in which country lies Ulm": by_text["where is Ulm"],
        "how old is the moon": 2,
    }
    assert by_text["where is Ulm"] != cooking
    assert read_pairs(quora).document_groups is None  # only where it is asked for


def test_inspect_says_what_joining_adds_and_contradicts(quora: Path) -> None:
    found = inspect(str(quora), JOINED)
    assert found["groups"] == "what positives connect"
    assert (found["counts"]["groups"], found["counts"]["documents_in_the_largest_group"]) == (3, 3)
    # 3 texts about cooking stand on both sides: 9 pairs, of which 3 are a text and itself, and 2 are labelled
    assert any(
        note.startswith("4 pairs of a query's text and a document's are in one group") for note in found["warnings"]
    )
    assert any(note.startswith("1 judged negative is in the group of its query") for note in found["warnings"])
    result = CliRunner().invoke(cli, ["inspect", str(quora), "--group-positives"])
    assert result.exit_code == 0
    assert "what positives connect" in result.stdout
    assert "groups" not in inspect(str(quora))


def test_a_large_group_is_said(tmp_path: Path) -> None:
    path = tmp_path / "chain.jsonl"
    path.write_text("".join(json.dumps({"query": f"text {i}", "positive": f"text {i + 1}"}) + "\n" for i in range(25)))
    notes = inspect(str(path), JOINED)["warnings"]
    assert any(note.startswith("the largest group of connected positives has 25 documents") for note in notes)


def test_the_filter_group_keeps_duplicates_of_duplicates_from_being_negatives(quora: Path, tmp_path: Path) -> None:
    plain = mine(quora, tmp_path / "plain", negatives=1)
    mined = mine(quora, tmp_path / "run", negatives=1, filters=["group"], read=JOINED)
    assert mined.info["reading"]["groups"] == "what positives connect"

    def negatives(run: Run) -> dict[str, list[str]]:
        pairs = run.pairs()
        text = dict(zip(pairs.document_ids.to_pylist(), pairs.documents, strict=True))
        asked = dict(zip(pairs.query_ids.to_pylist(), pairs.queries, strict=True))
        rows = run.negatives().to_pylist()
        return {asked[row["query_id"]]: [text[id] for id in row["negative_ids"]] for row in rows}

    assert negatives(plain)["how do I learn to cook"] == ["what is a way to cooking skills"]
    assert all("cook" not in text for text in negatives(mined)["how do I learn to cook"])
    again = mine(quora, tmp_path / "run", negatives=1, filters=["group"], read=JOINED, resume=True)
    assert (
        again.info["fingerprints"]["labels"]
        == mined.info["fingerprints"]["labels"]
        != plain.info["fingerprints"]["labels"]
    )


def test_groups_in_two_ways_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'label'.*--group-column.*--group-positives"):
        ReadOptions(group_positives=True, group_column="label")
    path = tmp_path / "classes.jsonl"
    rows = [{"query": f"q{i}", "positive": f"p{i}", "label": f"class {i % 3}"} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        DataError, match=r"classes.jsonl: it has groups of its own.*--group-positives.*--group-column ''"
    ):
        read_pairs(path, JOINED)
    assert read_pairs(path, ReadOptions(group_positives=True, group_column="")).document_groups is not None

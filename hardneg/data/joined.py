"""Groups of texts that hang together by positive pairs, such as questions that are all duplicates of one another.

Labels of pairs name only some of the pairs of a group: if a is a duplicate of b, and b of c, then a is one of c, labelled or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hardneg.data.texts import distinct_keys
from hardneg.storage.arrays import Int, Ragged

# A group of so many documents, and of this share of them, is worth a look: one wrong label joins two groups.
_LARGE, _LARGE_SHARE = 20, 0.01


@dataclass(frozen=True)
class Joined:
    """Groups made of positive pairs.

    Attributes:
        query_groups, document_groups: int64 `[n]` and `[N]`, the number of each text's group, from 0, in the order in which the
            documents, then the queries, first show it. A text in no pair is a group of its own.
        notes: what is to be said of them, by the names of `hardneg.data.notes`.
    """

    query_groups: Int
    document_groups: Int
    notes: dict[str, int]


def components(left: Int, right: Int, nodes: int) -> Int:
    """int64 `[nodes]`: the smallest node that each node is connected with, by edges between `left[i]` and `right[i]`.

    >>> components(np.array([4, 1]), np.array([1, 3]), 5).tolist()
    [0, 1, 2, 1, 1]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(left), bool), (left, right)), shape=(nodes, nodes))
    labels = connected_components(edges, directed=False)[1]
    smallest: Int = np.unique(labels, return_index=True)[1]
    found: Int = smallest[labels]
    return found


def join_positives(positives: Ragged, judged_negatives: Ragged, query_keys: Int, document_keys: Int) -> Joined:
    """Join queries and documents that positives connect; texts that are equal (folded) are one, whichever side they stand on.

    Args:
        positives, judged_negatives: rows of documents for each of n queries.
        query_keys, document_keys: int64 `[n]` and `[N]` keys of the texts (see `text_key`).
    """
    documents = len(document_keys)
    # An empty text (key 0) is like no other: `distinct_keys` gives it a key of its own.
    keys = np.concatenate([document_keys, query_keys])
    nodes = np.unique(distinct_keys(keys), return_inverse=True)[1].ravel()
    left = nodes[documents + positives.row_numbers()]
    found = components(left, nodes[positives.values], int(nodes.max(initial=-1)) + 1)[nodes]
    first, inverse = np.unique(found, return_index=True, return_inverse=True)[1:]
    order = np.empty(len(first), np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    groups = order[inverse.ravel()]
    of_documents, of_queries = groups[:documents], groups[documents:]
    sizes = np.bincount(of_documents, minlength=len(first))
    beyond = _beyond(nodes, groups, documents, left, nodes[positives.values])
    rows = judged_negatives.row_numbers()
    against = int((of_queries[rows] == of_documents[judged_negatives.values]).sum())
    largest = int(sizes.max(initial=0))
    notes = {"joined_relations": beyond, "joined_contradictions": against}
    if largest >= max(_LARGE, documents * _LARGE_SHARE):
        notes["joined_largest"] = largest
    return Joined(of_queries, of_documents, {name: count for name, count in notes.items() if count})


def _beyond(nodes: Int, groups: Int, documents: int, left: Int, right: Int) -> int:
    """Number of pairs of two texts, a query's and another one of a document, that are in one group without an edge between them.

    Args:
        nodes, groups: int64, the text and the group of each document, then of each query.
        documents: number of documents.
        left, right: int64 texts of the queries and of the documents that positives connect.
    """
    (d, at_d), (q, at_q) = (np.unique(each, return_index=True) for each in (nodes[:documents], nodes[documents:]))
    total = int(groups.max(initial=-1)) + 1
    sizes_d, sizes_q = (np.bincount(each, minlength=total) for each in (groups[at_d], groups[documents + at_q]))
    edges = int(np.unique(np.stack([left, right])[:, left != right], axis=1).shape[1])
    return int(sizes_d @ sizes_q) - len(np.intersect1d(d, q)) - edges

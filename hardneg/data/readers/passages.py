"""Reads the layouts of question answering and of chats, in which each row brings its passages along."""

from __future__ import annotations

from typing import Any

from hardneg.data.columns import as_id, as_list, need_cells
from hardneg.data.labels import is_blank
from hardneg.data.readers.layout import Layout
from hardneg.data.readers.rows import Row
from hardneg.errors import DataError


class DprRows(Layout):
    """Reads rows `{"question", "positive_ctxs": [...], "negative_ctxs": [...], "hard_negative_ctxs": [...]}` (DPR).

    A passage is `{"title", "text", "passage_id"}`.
    """

    name = "dpr"

    @staticmethod
    def fits(row: Row) -> bool:
        return "positive_ctxs" in row

    def __call__(self, where: str, row: Row) -> None:
        need_cells(row, ("question", "positive_ctxs"), where)
        query = self.builder.add_query(None, row["question"], where=where)
        for passage in as_list(row["positive_ctxs"], "positive_ctxs", where):
            self.builder.relate(query, self._passage(passage, where), 1)
        for name in ("negative_ctxs", "hard_negative_ctxs"):
            for passage in as_list(row.get(name) or [], name, where):
                self.own_negative(query, self._passage(passage, where))

    def _passage(self, passage: Any, where: str) -> int:
        if not isinstance(passage, dict):
            raise DataError(f"{where}: a passage is of type {type(passage).__name__}, expected an object with a text")
        need_cells(passage, ("text",), where)
        id = next(
            (passage[name] for name in ("passage_id", "psg_id", "id") if passage.get(name) not in (None, "")), None
        )
        title = passage.get("title") or ""
        return self.builder.add_document(
            None if id is None else as_id(id, where), passage["text"], title=title, where=where
        )


class SquadRows(Layout):
    """Reads rows `{"question", "context", "answers": {"text": [...]}}` (SQuAD): the context is the positive.

    The file as it was published, with `paragraphs` that hold `qas`, is read as well.
    """

    name = "squad"

    @staticmethod
    def fits(row: Row) -> bool:
        answers = row.get("answers")
        spans = isinstance(answers, dict) and "text" in answers and "answer_start" in answers
        return ("context" in row and "question" in row and spans) or isinstance(row.get("paragraphs"), list)

    def __call__(self, where: str, row: Row) -> None:
        if "paragraphs" not in row:
            need_cells(row, ("question", "context"), where)
            self._add(row, row["context"], where)
            return
        for paragraph in as_list(row["paragraphs"], "paragraphs", where):
            if not isinstance(paragraph, dict):
                raise DataError(f"{where}: a paragraph is of type {type(paragraph).__name__}, expected an object")
            need_cells(paragraph, ("context", "qas"), where)
            for question in as_list(paragraph["qas"], "qas", where):
                if not isinstance(question, dict) or "question" not in question:
                    raise DataError(f"{where}: an entry of 'qas' has no question")
                self._add(question, paragraph["context"], where)

    def _add(self, question: Row, context: Any, where: str) -> None:
        id = question.get("id")
        query = self.builder.add_query(None if id is None else as_id(id, where), question["question"], where=where)
        self.builder.relate(query, self.builder.add_document(None, context, where=where), 1)


class MarcoRows(Layout):
    """Reads rows `{"query_id", "query", "passages": {"is_selected": [...], "passage_text": [...]}}` (MS MARCO v1.1, v2.1).

    Passages that were not selected become documents of the corpus: they were not judged.
    """

    name = "msmarco"

    @staticmethod
    def fits(row: Row) -> bool:
        passages = row.get("passages")
        if isinstance(passages, list):
            return bool(passages) and isinstance(passages[0], dict) and "is_selected" in passages[0]
        return isinstance(passages, dict) and "is_selected" in passages and "passage_text" in passages

    def __call__(self, where: str, row: Row) -> None:
        need_cells(row, ("query", "passages"), where)
        id = row.get("query_id")
        query = self.builder.add_query(None if id is None else as_id(id, where), row["query"], where=where)
        for text, selected in _marco_passages(row["passages"], where):
            document = self.builder.add_document(None, text, where=where)
            if selected:
                self.builder.relate(query, document, 1)


def _marco_passages(passages: Any, where: str) -> list[tuple[Any, bool]]:
    """(text, whether it was selected) of each passage, from an object of lists or a list of objects."""
    if isinstance(passages, list):
        passages = {
            name: [each.get(name) if isinstance(each, dict) else None for each in passages]
            for name in ("passage_text", "is_selected")
        }
    if not isinstance(passages, dict):
        raise DataError(f"{where}: 'passages' is of type {type(passages).__name__}, expected an object of lists")
    need_cells(passages, ("passage_text", "is_selected"), where)
    texts, marks = (as_list(passages[name], name, where) for name in ("passage_text", "is_selected"))
    if len(texts) != len(marks) or any(mark not in (0, 1) for mark in marks):
        raise DataError(f"{where}: {len(texts)} passages, but {len(marks)} marks 0 or 1 in 'is_selected'")
    return [(text, bool(mark)) for text, mark in zip(texts, marks, strict=True)]


class ChatRows(Layout):
    """Reads rows `{"messages": [...], "positive_messages": [[...]], "negative_messages": [[...]]}` (ms-swift).

    The text of a list of messages is what they say, without system messages.
    """

    name = "chat"

    @staticmethod
    def fits(row: Row) -> bool:
        return isinstance(row.get("messages"), list) and "positive_messages" in row

    def __call__(self, where: str, row: Row) -> None:
        need_cells(row, ("messages", "positive_messages"), where)
        query = self.builder.add_query(None, _said(row["messages"], where), where=where)
        for name, grade in (("positive_messages", 1.0), ("negative_messages", 0.0)):
            for messages in as_list(row.get(name) or [], name, where):
                text = _said(messages, where)
                if is_blank(text):
                    self.builder.count(f"blank_{'positives' if grade else 'negatives'}")
                    continue
                document = self.builder.add_document(None, text, where=where)
                if grade:
                    self.builder.relate(query, document, grade)
                else:
                    self.own_negative(query, document)


def _said(messages: Any, where: str) -> str:
    parts = []
    for message in as_list(messages, "messages", where):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise DataError(f"{where}: a message has no text under 'content'")
        if message.get("role") != "system":
            parts.append(message["content"])
    return "\n".join(parts)

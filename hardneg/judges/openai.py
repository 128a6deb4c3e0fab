"""A language model behind an endpoint of the OpenAI kind, as a judge."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from hardneg.errors import UsageError
from hardneg.judges.answers import KeptAnswers, default_folder
from hardneg.judges.base import NO_ANSWER, JudgeOptions, Verdicts, need_model
from hardneg.judges.cost import BudgetSpent, Estimate, Ledger, tokens
from hardneg.judges.endpoint import Endpoint, RequestRefused
from hardneg.judges.prompt import RELEVANT_FROM, addresses_judge, messages, read_grades, template
from hardneg.progress import Advance, Progress, silent

_ANSWER_TOKENS = 8  # of one grade

_ROOM = 1024  # tokens that an answer may have: models that think write their thoughts first

_ADDRESSED = "the document addresses the judge"

_UNREADABLE = "no answer that could be read"

_NOT_ASKED = "no answer: the budget was spent"

_REFUSED = "no answer: the endpoint refuses this pair"

_MOST_REFUSED = 3  # requests that may be refused before one is answered: then it is not the pairs that are wrong


class OpenAIJudge:
    """Asks a model at any endpoint that speaks OpenAI's chat completions.

    Requests run in a bounded number of threads. What fails for a passing reason is sent again (`Endpoint`), what was answered is
    never asked again (`KeptAnswers`). An answer that is not one JSON object of grades is asked for once more, alone; what is not
    understood then has no verdict, and is counted; likewise a pair that the endpoint refuses, such as one that is too long. The
    grades are those of TREC's deep learning tracks, 0 to 3, as in the prompts of UMBRELA (Upadhyay et al. 2024, arXiv 2406.06519).

    Args:
        model: the name of the model at the endpoint.
        options: how to ask.

    Raises:
        UsageError: an option cannot be used.
    """

    def __init__(self, model: str, options: JudgeOptions) -> None:
        self.model, self.options = model, options
        self.several = options.pairs_per_request > 1
        self.cut = RELEVANT_FROM if options.cut is None else options.cut
        if not 0 < self.cut <= 3:
            raise UsageError(f"the cut {self.cut:g} must be a grade above 0 and at most 3")
        self.endpoint = Endpoint(
            options.url, options.key_variable, allow_http=options.allow_http, timeout=options.timeout,
            retries=options.retries,
        )  # fmt: skip
        self.ledger = Ledger(options.prices, options.budget)
        self._lock, self._answered = threading.Lock(), 0
        self._refused: list[RequestRefused] = []
        self.prompt = template(self.several)
        digest = hashlib.sha256(self.prompt.encode()).hexdigest()
        self.name = f"openai:{model}"
        folder = default_folder() if options.cache is None else Path(options.cache)
        self.kept = KeptAnswers(folder, {"url": self.endpoint.url, "model": model, "prompt": digest})

    def judge(self, pairs: Sequence[tuple[str, str]], progress: Progress = silent) -> Verdicts:
        """Judge pairs of (query, document). Equal pairs are asked about once.

        Raises:
            UsageError: the estimate was not confirmed. EndpointError: the endpoint refuses or fails; answers so far are kept.
            RunError: answers cannot be kept, or another process asks the same judge.
        """
        keys = [self.kept.key(*pair) for pair in pairs]
        todo = self._open(keys, pairs)
        if not todo:
            return self._verdicts(pairs, keys, {}, 0)
        with self.kept.alone():  # nobody else pays for the same pairs meanwhile
            reasons: dict[str, str] = {}
            todo = self._open(keys, pairs)
            self._ask_confirmed(todo, len(set(keys)) - len(todo), reasons, progress)
        return self._verdicts(pairs, keys, reasons, len(todo))

    def _open(self, keys: list[str], pairs: Sequence[tuple[str, str]]) -> list[tuple[str, tuple[str, str]]]:
        """The pairs without an answer, each once, with their keys."""
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if self.kept.get(key) is None}
        return list(new.items())

    def _ask_confirmed(
        self, todo: list[tuple[str, tuple[str, str]]], cached: int, reasons: dict[str, str], progress: Progress
    ) -> None:
        """Ask about these pairs, if the estimate is all right."""
        estimate = self.estimate([pair for _, pair in todo], cached)
        if todo and self.options.confirm is not None and not self.options.confirm(estimate):
            raise UsageError("nothing was asked: the estimate was not confirmed")
        if todo:
            self._ask_all(todo, reasons, progress("judge", len(todo)))

    def estimate(self, pairs: Sequence[tuple[str, str]], cached: int = 0) -> Estimate:
        """What asking about these pairs is expected to take."""
        requests = -(-len(pairs) // self.options.pairs_per_request)
        prompt = requests * (tokens([self.prompt]) + 12) + tokens(text for pair in pairs for text in pair)
        answer = _ANSWER_TOKENS * len(pairs)
        prices = self.options.prices
        return Estimate(
            len(pairs), cached, requests, prompt, answer, None if prices is None else prices.cost(prompt, answer)
        )

    def _ask_all(self, todo: list[tuple[str, tuple[str, str]]], reasons: dict[str, str], advance: Advance) -> None:
        """Ask about all pairs, so many requests at once, and keep each answer when it comes."""
        size = self.options.pairs_per_request
        groups = iter([todo[i : i + size] for i in range(0, len(todo), size)])
        running: dict[Future[None], int] = {}
        most = 1 if self.options.budget is not None else self.options.concurrency  # see `Ledger`
        pool = ThreadPoolExecutor(self.options.concurrency, "judge")
        try:
            while True:
                while len(running) < most and (group := next(groups, None)) is not None:
                    running[pool.submit(self._ask_group, group, reasons)] = len(group)
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                most = self.options.concurrency
                for each in done:
                    advance(running.pop(each))
                    each.result()
        finally:
            if running:  # an error, or an interruption: what is under way is awaited and kept, what waits gives up
                self.endpoint.stop()
            pool.shutdown(wait=True, cancel_futures=True)
        if self._refused and not self._answered:
            raise self._refused[-1]

    def _ask_group(self, group: list[tuple[str, tuple[str, str]]], reasons: dict[str, str]) -> None:
        """Ask about some pairs in one request; once more, and one by one, if the answer cannot be read."""
        grades = self._asked([pair for _, pair in group], self.several, False)
        if isinstance(grades, list):
            self.kept.put(dict(zip((key for key, _ in group), grades, strict=True)))
            return
        for key, pair in group:
            alone = grades == _UNREADABLE or (grades == _REFUSED and len(group) > 1)
            again = self._asked([pair], self.several, grades == _UNREADABLE) if alone else grades
            if isinstance(again, list):
                self.kept.put({key: again[0]})
            else:
                reasons[key] = again

    def _asked(self, pairs: list[tuple[str, str]], several: bool, again: bool) -> list[int] | str:
        """The grades of one request, or why there are none."""
        asked = messages(pairs, several, again)
        expected = tokens(each["content"] for each in asked), _ANSWER_TOKENS * len(pairs)
        try:
            answer = self.endpoint.ask(
                {
                    "model": self.model, "messages": asked, "temperature": 0, "seed": 0,
                    "max_tokens": _ROOM + _ANSWER_TOKENS * len(pairs), "response_format": {"type": "json_object"},
                },
                lambda: self.ledger.post(expected),
            )  # fmt: skip
        except BudgetSpent:
            return _NOT_ASKED
        except RequestRefused as refused:
            with self._lock:
                self._refused.append(refused)
                if not self._answered and len(self._refused) >= _MOST_REFUSED:
                    raise
            return _REFUSED
        with self._lock:
            self._answered += 1
        grades = read_grades(_content(answer), len(pairs), several)
        return _UNREADABLE if grades is None else grades

    def _verdicts(
        self, pairs: Sequence[tuple[str, str]], keys: list[str], reasons: dict[str, str], asked: int
    ) -> Verdicts:
        found = [self.kept.get(key) for key in keys]
        value = np.array([np.nan if grade is None else grade for grade in found], np.float64)
        relevant = np.where(np.isnan(value), NO_ANSWER, value >= self.cut).astype(np.int8)
        notes = {i: reasons[key] for i, key in enumerate(keys) if key in reasons}
        notes |= {i: _ADDRESSED for i, (_, text) in enumerate(pairs) if i not in notes and addresses_judge(text)}
        counts: dict[str, float] = {
            "pairs": len(pairs),
            "asked now": asked - sum(reason == _NOT_ASKED for reason in reasons.values()),
            "requests": self.ledger.requests,
            "sent again": self.endpoint.retried,
            "answers that could not be read": sum(note == _UNREADABLE for note in notes.values()),
            "refused by the endpoint": sum(note == _REFUSED for note in notes.values()),
            "not asked for lack of budget": sum(note == _NOT_ASKED for note in notes.values()),
            "documents that address the judge": sum(note == _ADDRESSED for note in notes.values()),
            "damaged lines in the cache": self.kept.damaged,
            "tokens in": self.ledger.prompt_tokens,
            "tokens out": self.ledger.answer_tokens,
        }
        if self.ledger.cost is not None:
            counts["cost"] = self.ledger.cost
        return Verdicts(relevant, value, notes, counts)


def _content(answer: dict[str, Any]) -> str:
    """The text of an answer; "" if there is none."""
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else ""


def from_spec(model: str, options: JudgeOptions) -> OpenAIJudge:
    return OpenAIJudge(need_model("openai", model), options)

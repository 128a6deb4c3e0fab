"""What asking a judge costs: estimated before, counted while it is asked, and limited by a budget."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hardneg.errors import UsageError

_MARGIN = 1.25  # by which a request may take more than those before it

_BYTES_A_TOKEN = 4  # of UTF-8: what tokenizers need for English; other languages need fewer


@dataclass(frozen=True)
class Prices:
    """Prices of a million tokens, in any currency.

    >>> Prices.parse("0.15,0.60").cost(1_000_000, 100_000)
    0.21
    """

    prompt: float
    answer: float

    @classmethod
    def parse(cls, text: str) -> Prices:
        """`IN,OUT`: prices of a million tokens of the prompt and of the answer."""
        try:
            prompt, answer = (float(part) for part in text.split(","))
        except ValueError:
            raise UsageError(
                f"the price {text!r} must be two numbers: a million tokens in, out, as in 0.15,0.60"
            ) from None
        if not (0 <= prompt < 1e6 and 0 <= answer < 1e6):
            raise UsageError(f"the price {text!r} must be two numbers of 0 or more")
        return cls(prompt, answer)

    def cost(self, prompt_tokens: int, answer_tokens: int) -> float:
        return (prompt_tokens * self.prompt + answer_tokens * self.answer) / 1e6


@dataclass(frozen=True)
class Budget:
    """Where to stop: an amount of money, tokens or requests.

    >>> Budget.parse("2.5"), Budget.parse("500requests")
    (Budget(amount=2.5, unit='money'), Budget(amount=500.0, unit='requests'))
    """

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?(tokens|requests)?", text.strip())
        if match is None:
            raise UsageError(
                f"the budget {text!r} must be an amount of money, or of tokens or requests: 2.50, 200000tokens, 500requests"
            )
        return cls(float(match[1]), match[2] or "money")


@dataclass(frozen=True)
class Estimate:
    """What judging is expected to take.

    Attributes:
        pairs: pairs to ask about; those in the cache cost nothing.
        cached: pairs whose answers are there already.
        requests, prompt_tokens, answer_tokens: how many. Tokens are estimated at four bytes each.
        cost: in the currency of the prices; None without prices.
    """

    pairs: int
    cached: int
    requests: int
    prompt_tokens: int
    answer_tokens: int
    cost: float | None

    def __str__(self) -> str:
        cost = (
            "at a price that is not known (--price IN,OUT)"
            if self.cost is None
            else f"{_amount(self.cost)} in the currency of --price"
        )
        return (
            f"{self.pairs:,} pairs to ask about ({self.cached:,} more are answered already): {self.requests:,} requests, about "
            f"{self.prompt_tokens:,} tokens in and {self.answer_tokens:,} out, {cost}"
        )


def _amount(cost: float) -> str:
    """
    >>> _amount(12.3), _amount(0.001)
    ('about 12.30', 'less than 0.01')
    """
    return f"about {cost:,.2f}" if cost >= 0.005 or cost == 0 else "less than 0.01"


def tokens(texts: Iterable[str]) -> int:
    """About how many tokens texts have.

    >>> tokens(["hello world", ""])
    3
    """
    return sum(-(-len(text.encode()) // _BYTES_A_TOKEN) for text in texts)


class BudgetSpent(Exception):
    """The next request would exceed the budget."""


@dataclass
class Post:
    """One request on its way, as `Ledger.post` counts it.

    Attributes:
        sent: whether it went out: then it is a request, whatever comes of it.
        status: of the answer; None as long as there is none.
        answer: the decoded answer.
    """

    sent: bool = False
    status: int | None = None
    answer: dict[str, Any] | None = None

    def used(self, expected: tuple[int, int]) -> tuple[int, int]:
        """The tokens that the endpoint counted. What it does not tell is taken to be as expected; a refusal takes none."""
        if self.status not in (None, 200):
            return 0, 0
        usage = None if self.answer is None else self.answer.get("usage")
        found = [
            usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")
        ]
        numbers = [
            each if isinstance(each, int) and 0 <= each < 1 << 31 else other
            for each, other in zip(found, expected, strict=True)
        ]
        return numbers[0], numbers[1]


class Ledger:
    """Counts what was spent, from several threads, and says when the next request would exceed the budget.

    Tokens are estimates until the first answer says how many there were; so the first request should be made alone. From then on a
    request is taken to need as many more than its estimate as the worst before it, and a quarter on top.

    Args:
        prices: what tokens cost; None: not known.
        budget: the limit; None: none.

    Raises:
        UsageError: the budget is money, and there are no prices.
    """

    def __init__(self, prices: Prices | None, budget: Budget | None) -> None:
        if budget is not None and budget.unit == "money" and prices is None:
            raise UsageError(
                "a budget of money needs prices: give --price IN,OUT (of a million tokens), or a budget of tokens or requests, as "
                "in 500requests"
            )
        self.prices, self.budget = prices, budget
        self.requests = self.prompt_tokens = self.answer_tokens = 0
        self._reserved, self._ratio = 0.0, 1.0
        self._lock = threading.Lock()

    @property
    def cost(self) -> float | None:
        return None if self.prices is None else self.prices.cost(self.prompt_tokens, self.answer_tokens)

    def _amount(self, requests: int, prompt: int, answer: int) -> float:
        unit = "requests" if self.budget is None else self.budget.unit
        if unit == "money":
            assert self.prices is not None
            return self.prices.cost(prompt, answer)
        return float(requests if unit == "requests" else prompt + answer)

    @contextmanager
    def post(self, expected: tuple[int, int]) -> Iterator[Post]:
        """Count one request that is expected to take these tokens, also if it fails and is sent again.

        Raises:
            BudgetSpent: it would exceed the budget; nothing may be sent.
        """
        reserved = self.reserve(*expected)
        if reserved is None:
            raise BudgetSpent
        post = Post()
        try:
            yield post
        finally:
            if post.sent:
                self.spend(*post.used(expected), expected)
            self.release(reserved)

    def reserve(self, prompt: int, answer: int) -> float | None:
        """Set aside what one request will take; None if that would exceed the budget. Requests under way count."""
        with self._lock:
            money_or_tokens = self.budget is not None and self.budget.unit != "requests"
            amount = self._amount(1, prompt, answer) * (self._ratio * _MARGIN if money_or_tokens else 1.0)
            spent = self._amount(self.requests, self.prompt_tokens, self.answer_tokens)
            if self.budget is not None and spent + self._reserved + amount > self.budget.amount * (1 + 1e-9):
                return None
            self._reserved += amount
        return amount

    def release(self, reserved: float) -> None:
        """Give back what was set aside."""
        with self._lock:
            self._reserved = max(0.0, self._reserved - reserved)

    def spend(self, prompt: int, answer: int, expected: tuple[int, int]) -> None:
        """Count one request that took these tokens, and was expected to take others."""
        with self._lock:
            foreseen = self._amount(1, *expected)
            self._ratio = max(self._ratio, self._amount(1, prompt, answer) / foreseen if foreseen else 1.0)
            self.requests += 1
            self.prompt_tokens += prompt
            self.answer_tokens += answer

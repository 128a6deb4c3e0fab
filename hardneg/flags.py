"""Messages speak of the options of the command line; from Python, each stands beside the argument that it is there."""

from __future__ import annotations

import re

_SWITCHES = {
    "overwrite": "overwrite=True", "resume": "resume=True", "force": "force=True", "skip-unknown": "skip_unknown=True",
    "outside-images": "outside_images=True", "skip-broken": "skip_broken=True", "group-positives": "group_positives=True",
    "trust-judge": "trust_judge=True", "uncertified": "uncertified=True", "no-wait": "wait=False",
}  # fmt: skip

# What values of an option look like in messages; where something else follows it, it is spoken of without a value.
_NUMBER, _NAME = r"\d+(?:,\d{3})*(?:\.\d+)?\b(?!-)|X\b", r"'[^']*'|[A-Z]+\b"
_ARGUMENTS = {
    **dict.fromkeys(("depth", "max-depth", "negatives", "recall", "seed", "threads", "shards", "steps", "epochs"), _NUMBER),
    **dict.fromkeys(("patience", "alpha", "confidence", "sample", "relevant-from", "temperature", "batch-size"), _NUMBER),
    "index": rf"{_NAME}|(?:exact|ivf|hnsw|auto)\b(?::[\w=,.]*\w)?",
    "metric": rf"{_NAME}|(?:cosine|ip|l2)\b",
    "precision": rf"{_NAME}|float\d+\b",
    "encoder-precision": rf"{_NAME}|(?:float32|bfloat16|float16|auto)\b(?! (?:and|or) )",
    "device": rf"{_NAME}|(?:cpu|cuda|mps)\b(?::\d+)?",
    "engine": rf"{_NAME}|ray(?::N)?(?=[\s.]|$)",
    "learn": rf"{_NAME}|(?:judged|groups|known)\b",
    "quoting": rf"{_NAME}|(?:quotes|none)\b",
    "group-column": rf"{_NAME}|[\w.-]+(?= \()",
    "relevance-column": rf"{_NAME}|[\w.-]+(?= (?:--|\())",
    **dict.fromkeys(("out", "cache", "split", "corpus", "text-column", "query-column", "positive-column", "id-column"), _NAME),
    **dict.fromkeys(("document-id-column", "image-column", "image-root", "index-device", "devices", "sampler", "fusion"), _NAME),
    **dict.fromkeys(("candidates", "posterior", "predictions", "judged", "run", "lora", "freeze", "name", "query-prompt"), _NAME),
    **dict.fromkeys(("document-prompt", "distill", "encoder", "scorer", "scores"), _NAME),
    "only": rf"{_NAME}|(?:all|kept)\b|first:\w+",
}  # fmt: skip

# A value that is not known as one: the option and it stay as they are. What are no values are the words of a sentence.
_PROSE = (
    "a after again alone also and anew are as asks at be before both but by can counts does else first "
    "for from given gives has have here if in instead is it its must names needs not of on once only or "
    "out says so takes than that the there to too was were where which while with without would"
)
_VALUE = re.compile(rf" (?!(?:{'|'.join(_PROSE.split())})\b)[\w./{{<]")

# Options that are called something else in Python.
_RENAMED = {"filter": "filters", "add-filter": "add_filters", "own-negatives": "negatives"}

_COMMAND = r"hardneg [a-z-]+[^,;)]*"  # a command stays as it is, so that it can be typed
_GIVEN = r"\(--[^)]*\)"  # both forms stand there already
_OPTION = r"(?<![\w'\"(-])--(?P<flag>[a-z][a-z-]*)"
_QUOTED = r"""(?<![^\s(\[{:=,])(?:'[^'\n]*'|"[^"\n]*")(?![^\s)\]},.:;])"""  # what somebody gave: text, columns, values
_PATH = r"[^\s/]*/\S* --\S*"  # a name with a space in it
_PARTS = re.compile(f"{_COMMAND}|{_QUOTED}|{_PATH}|{_GIVEN}|{_OPTION}")


def with_arguments(message: str) -> str:
    """The message, with the argument of Python beside each option of the command line that it names.

    What stands in a command (`hardneg ...`), or in parentheses already, stays as it is; so do options that Python does not have.

    >>> with_arguments("use --index exact, raise --depth, or replace it with --overwrite")
    "use index='exact' (--index exact), raise depth (--depth), or replace it with overwrite=True (--overwrite)"
    >>> with_arguments("go on with hardneg mine x --out run --resume; or --depth 5 (--depth)")
    'go on with hardneg mine x --out run --resume; or depth=5 (--depth 5) (--depth)'
    """
    if "--" not in message:
        return message
    parts, at = [], 0
    while (found := _PARTS.search(message, at)) is not None:
        parts.append(message[at : found.start()])
        text, at = found.group(), found.end()
        if found["flag"] is not None and not _beside(found["flag"], message[: found.start()]):
            text, at = _both(found["flag"], message, at)
        parts.append(text)
    return "".join([*parts, message[at:]])


def _beside(flag: str, before: str) -> bool:
    """Whether the text before an option names the argument already, as in `group_column='', --group-column ''`."""
    return re.search(rf"\b{flag.replace('-', '_')}(=[^\s,]+)?(, | \()$", before) is not None


def _both(flag: str, message: str, at: int) -> tuple[str, int]:
    """Both forms of an option, and where the message goes on. `at`: where the option's name ends."""
    if flag in _SWITCHES:
        return f"{_SWITCHES[flag]} (--{flag})", at
    if _VALUE.match(message, at) and flag not in _ARGUMENTS:
        spec = re.compile(r" ([a-z][\w:=.-]*\w)").match(message, at)
        if spec is None or not flag.endswith("filter"):
            return f"--{flag}", at
        return f"{_RENAMED[flag]}=({spec[1]!r},) (--{flag} {spec[1]})", spec.end()
    if flag in _RENAMED:
        return f"{_RENAMED[flag]} (--{flag})", at
    if flag not in _ARGUMENTS:
        return f"--{flag}", at
    name = flag.replace("-", "_")
    value = re.compile(rf" (?:{_ARGUMENTS[flag]})").match(message, at)
    if value is None:
        return (f"--{flag}" if _VALUE.match(message, at) else f"{name} (--{flag})"), at
    text = value.group().strip().removesuffix(".") if value.group().strip()[0].isdigit() else value.group().strip()
    plain = text[0] in "'" or text[0].isdigit() or text.isupper()  # a number, a text in quotes, a placeholder
    return f"{name}={text if plain else repr(text)} (--{flag} {text})", at + 1 + len(text)

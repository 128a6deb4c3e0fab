"""A cheap guess at the language of a text: its script, and for Latin script the most frequent small words."""

from __future__ import annotations

import re
from collections import Counter

_CHARACTERS = 400  # characters at the start of a text that are looked at

_WORD = re.compile(r"[^\W\d_]+")

_SCRIPTS = (  # first and last code point
    ("Greek", 0x370, 0x3FF), ("Cyrillic", 0x400, 0x52F), ("Armenian", 0x530, 0x58F),
    ("Hebrew", 0x590, 0x5FF), ("Arabic", 0x600, 0x77F),
    ("Devanagari", 0x900, 0x97F), ("Bengali", 0x980, 0x9FF), ("Tamil", 0xB80, 0xBFF),
    ("Thai", 0xE00, 0xE7F), ("Georgian", 0x10A0, 0x10FF),
    ("Korean", 0x1100, 0x11FF), ("Japanese", 0x3040, 0x30FF), ("Han", 0x3400, 0x4DBF),
    ("Han", 0x4E00, 0x9FFF), ("Korean", 0xAC00, 0xD7AF),
)  # fmt: skip

_OF_ONE_LANGUAGE = ("Korean", "Japanese")

# Small words that few of the other languages have.
_WORDS = {
    "English": "the of and to in is that for it with as was on are by this be from what how you not i do my can your does did "
    "why when where which who if or an at have has will would me am there should we they",
    "German": "der die das und ist nicht ein eine zu den mit von im auf für des dem sich auch wie",
    "French": "le la les des et est une du que pour dans qui sur pas au avec ce il vous comment",
    "Spanish": "el los las de y es una que por con para del se como está más qué cómo su al",
    "Portuguese": "o os as e é um uma que não com para do da em como mais dos na no você",
    "Italian": "il lo gli di e è un una che non con per del della sono come più nel dei alla",
    "Dutch": "de het een en van is niet dat op te voor met zijn aan er om ook wat hoe bij",
    "Polish": "i w nie na jest się do to że z jak o co od po za ale czy dla przez",
    "Swedish": "och att det som en på är av för den med till inte har ett om jag hur vad eller",
    "Turkish": "ve bir bu için ile da de ne mi çok daha gibi olarak olan nasıl değil var en kadar ki",
    "Indonesian": "yang dan di dengan untuk ini dari tidak itu adalah pada ke dalam akan apa bagaimana saya ada oleh juga",
    "Vietnamese": "và của là có không được cho các một trong này với người những để thế như nào tôi khi",
}
_LANGUAGES_OF: dict[str, list[str]] = {}
for _language, _text in _WORDS.items():
    for _word in _text.split():
        _LANGUAGES_OF.setdefault(_word, []).append(_language)


def guessed_language(text: str) -> str:
    """Guess the language of a text from its first 400 characters.

    Returns:
        A language of the twelve in Latin script that are known here; else the script (`Cyrillic script`, ...), `Latin script` if
        its small words tell nothing, or `no letters`. Han with any kana is `Japanese`, and Hangul is `Korean`.

    >>> [guessed_language(t) for t in ("How is the weather?", "Wie ist das Wetter?", "Как дела?", "天気はどう", "def f(x)", "12")]
    ['English', 'German', 'Cyrillic script', 'Japanese', 'Latin script', 'no letters']
    """
    start = text[:_CHARACTERS]
    if not start.isascii():
        found = Counter(_script(ord(c)) for c in start if c > "\x7f" and c.isalpha())
        latin = sum(c < "\u0250" and c.isalpha() for c in start)
        if found.get("Japanese"):
            return "Japanese"
        name, count = max(found.items(), key=lambda each: (each[1], each[0]), default=("Latin", 0))
        if name != "Latin" and 2 * count > latin:  # a word of a dense script has few letters
            return name if name in _OF_ONE_LANGUAGE else f"{name} script"
    words: dict[str, int] = {}
    for word in _WORD.findall(start.lower()):
        for language in _LANGUAGES_OF.get(word, ()):
            words[language] = words.get(language, 0) + 1
    if not words:
        return "Latin script" if any(c.isalpha() for c in start) else "no letters"
    (first, count), *others = sorted(words.items(), key=lambda each: (-each[1], each[0]))
    return "Latin script" if others and others[0][1] == count else first


def _script(code: int) -> str:
    return next((name for name, low, high in _SCRIPTS if low <= code <= high), "Latin" if code < 0x250 else "other")

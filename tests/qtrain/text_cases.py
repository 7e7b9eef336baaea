"""Made text for the tests of text: sentences of a small grammar, so that there is much to learn."""

from __future__ import annotations

import random
from pathlib import Path

WORDS = "the cat dog sees hears every old bird and then naïve one".split()


def sentences(characters: int, seed: int = 0) -> str:
    """About so many characters of random words, in lines."""
    draw = random.Random(seed)
    words: list[str] = []
    while sum(len(word) + 1 for word in words) < characters:
        words.append(draw.choice(WORDS) + draw.choice(["", "", "", ".\n"]))
    return " ".join(words)


def write_text(path: Path, characters: int = 6000) -> Path:
    """A text file."""
    path.write_text(sentences(characters), encoding="utf-8")
    return path

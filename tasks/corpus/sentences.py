"""Cuts text into paragraphs and sentences by one short rule: newlines first, then the stops no abbreviation explains.

Splitters that need data files cannot be had offline and the careful ones read 0.15 MB/s; this one reads tens of MB/s.
It never loses or changes a character that is not white space.

    split_sentences("Dr. Ada came. She saw.\\nShe left!")  ->  ["Dr. Ada came.", "She saw.", "She left!"]
"""

from __future__ import annotations

import re

# What ends with a full stop and does not end a sentence when a capital or a digit follows. Compared in lower case.
ABBREVIATIONS = frozenset(
    "al approx art capt ca cf ch chap co col corp dept dr e.g ed eds eq esp est etc exec ext fig figs gen gov hon i.e "
    "inc jr lt ltd maj messrs mr mrs ms mt no nos nr op p pp para prof ref refs rep rev sec sect sen sgt sr st u.k u.s "
    "univ viz vol vols vs jan feb mar apr jun jul aug sep sept oct nov dec".split()
)

# A run of enders, closing quotes or brackets, then white space and something that can begin a sentence; or an East
# Asian full stop, which needs no space after it.
_CANDIDATE = re.compile(
    r"(?:[.!?…]+[\"'”’»)\]]*(?=\s+[\"'“‘«(\[*_`-]*[^\W_a-z])|[。！？]+[」』”’）]*)",
)
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘/-]+$")


def split_paragraphs(text: str) -> list[str]:
    """Stretches of text between blank lines, stripped, none of them empty."""
    return [part for part in (piece.strip() for piece in re.split(r"\n[^\S\n]*\n", text)) if part]


def split_sentences(text: str) -> list[str]:
    """Sentences in order, stripped, none of them empty; a newline always ends one."""
    sentences = []
    for line in text.splitlines():
        start = 0
        for match in _CANDIDATE.finditer(line):
            if _ends_sentence(line, match):
                sentences.append(line[start : match.end()].strip())
                start = match.end()
        sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _ends_sentence(line: str, match: re.Match[str]) -> bool:
    """Whether the stop is more than the dot of an abbreviation, an initial ("J. Smith") or a number ("3. Then")."""
    if match[0][0] != "." or match[0].startswith(".."):
        return True
    # 40 characters hold any abbreviation; looking back through the whole line would make long lines quadratic.
    word = _LAST_WORD.search(line, max(0, match.start() - 40), match.start())
    if word is None:
        return True
    bare = word[0]
    if len(bare) == 1 and bare.isalpha() and bare != "I":
        return False
    if bare.isdigit() and not line[: word.start()].strip():
        return False
    return bare.lower() not in ABBREVIATIONS

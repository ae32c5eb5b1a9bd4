"""Characters that a text hardly has on purpose: what is left of a wrong decoding, of a broken export, of a terminal.

Decisions:
- Mojibake (UTF-8 that was read as Latin-1 or Windows-1252) is told by patterns, each the image of common UTF-8 sequences: accented letters, typographic punctuation, emoji, byte-order
  marks, and runs of Cyrillic, Greek, Hebrew, Arabic or East Asian letters. A pair that ordinary writing can have, such as a capital letter before a closing quotation mark,
  does not count. A library (ftfy) repairs such texts; to find them, the patterns agree with its detector and need no dependency.
- Tabs and line ends are no oddities: the readers allow them in quoted fields.
- Texts of ASCII alone are told by one scan, and are nearly all texts of nearly all tables.
"""

import re
from enum import IntFlag


class OddCharacters(IntFlag):
    """What a text has of them."""

    NONE = 0
    CONTROL = 1
    REPLACEMENT = 2
    PRIVATE_USE = 4
    MOJIBAKE = 8


ODD_KINDS = tuple(kind.name.lower() for kind in OddCharacters if kind.name)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_PRIVATE_USE = re.compile("[\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
# The bytes 0x80 to 0xBF as Latin-1 and Windows-1252 show them; of the quotation marks, dots and dashes among them ordinary writing makes use as well.
_BYTES = "\u0080-\u00bf"
_SIGNS = "€‚ƒ„†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ"
_PUNCTUATION = "‘’“”…–—"
_REST = f"[{_BYTES}{_SIGNS}{_PUNCTUATION}]"
# Every image begins with two characters beyond ASCII; looking at such runs alone is much quicker than at the whole text.
_RUNS = re.compile("[^\x00-\x7f]{2,}\\w?")
_MOJIBAKE = re.compile(
    "|".join(
        [
            f"[ÂÃ][{_BYTES}]|Ã[{_SIGNS}]|Ã[{_PUNCTUATION}](?=\\w)",  # accented letters, no-break spaces
            f"â[\u0080-\u009f€‚„†ˆ‰œ]{_REST}",  # typographic punctuation, currency, arrows
            f"ð[\u009fŸ]{_REST}{{2}}",  # emoji
            "ï»¿|ï¿½",  # byte-order mark, replacement character
            f"(?:[ÐÑ]{_REST}){{2}}|(?:[ÎÏ]{_REST}){{2}}|(?:×{_REST}){{2}}|(?:[ØÙÚÛ]{_REST}){{2}}",  # Cyrillic, Greek, Hebrew, Arabic
            f"(?:[ãäåæçèé]{_REST}{{2}}){{2}}",  # East Asian
        ]
    )
)


def odd_characters(text: str) -> OddCharacters:
    """The kinds of odd characters in a text."""
    found = OddCharacters.NONE
    # The built-in test is many times quicker than the pattern, and line ends are the usual reason for it to fail.
    if not text.isprintable() and _CONTROL.search(text):
        found |= OddCharacters.CONTROL
    if text.isascii():
        return found
    if "\ufffd" in text:
        found |= OddCharacters.REPLACEMENT
    if _PRIVATE_USE.search(text):
        found |= OddCharacters.PRIVATE_USE
    if any(_MOJIBAKE.search(run) for run in _RUNS.findall(text)):
        found |= OddCharacters.MOJIBAKE
    return found

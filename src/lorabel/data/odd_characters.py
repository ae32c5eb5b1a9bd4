"""Characters that no writer meant: control codes, replacement characters, private use, and UTF-8 that was read as Windows-1252."""

import re

# What Windows-1252 shows for the bytes 0x80 to 0x9f that follow the first of a two-byte character.
_UPPER_SIGNS = bytes(byte for byte in range(0x80, 0xA0) if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)).decode("cp1252")
# Tab, line feed and carriage return are white space; all other control codes are debris.
_PATTERNS = {
    "control": r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]",
    "replacement": "\ufffd",
    "private_use": "[\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]",
    # The first byte of a two-byte character read as a letter, with a sign from the upper half after it; curly quotes and dashes; a byte-order mark.
    "mojibake": f"[\u00c2\u00c3][\u00a0-\u00bf{_UPPER_SIGNS}]|\u00e2\u20ac[\u0080-\uffff]|\u00ef\u00bb\u00bf",
}
ODD_KINDS = tuple(_PATTERNS)
_ANY = re.compile("|".join(f"(?:{pattern})" for pattern in _PATTERNS.values()))
_EACH = [re.compile(pattern) for pattern in _PATTERNS.values()]


def odd_characters(text: str) -> int:
    """Which kinds of odd characters a text holds.

    Args:
        text: Any text.

    Returns:
        A sum of 1 << place in `ODD_KINDS`; 0 where there are none.
    """
    if not _ANY.search(text):
        return 0
    return sum(1 << place for place, pattern in enumerate(_EACH) if pattern.search(text))

"""Odd characters: wrong decodings of many languages are seen, ordinary writing is not."""

import pytest

from lorabel.data.odd_characters import OddCharacters, odd_characters

CLEAN = [
    "café naïve", "“quoted” text…", "Größe über Straße", "It’s 5 €", "emoji 😀 here", "Привет мир", "Ελληνικά", "שלום עולם", "مرحبا بالعالم", "你好世界", "São Paulo amanhã", "ÉTÉ",
    "naïve – dash", "temperature 20 °C", "half ½ price £5", "niño señor ¿qué?", "Łódź Kraków", "český jazyk",
]  # fmt: skip
TRICKY = [
    "“ENTRÉ”", "“AMANHÔ", "fiancé…”", "«AMANHà »", "l’été… À “Paris”", "Ö” und “Ä", "Âge d’or", "CÔTÉ—", "à €5", "Ø 5–6 mm", "10 × 20 × 30 “x”",
    "ΑΒΓ “Ω”", "Rafī‘ābād", "line\nbreak\ttab\r\n",
]  # fmt: skip


def misread(text, encoding):
    """UTF-8 bytes as another encoding shows them; the bytes that Windows-1252 leaves undefined stay controls."""
    return "".join(bytes([byte]).decode(encoding) if encoding == "latin-1" or byte not in b"\x81\x8d\x8f\x90\x9d" else chr(byte) for byte in text.encode())


@pytest.mark.parametrize("text", [*CLEAN, *TRICKY])
def test_ordinary_writing_is_not_odd(text):
    assert odd_characters(text) == OddCharacters.NONE


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
@pytest.mark.parametrize("text", CLEAN)
def test_utf8_read_as_something_else_is_mojibake(text, encoding):
    assert OddCharacters.MOJIBAKE in odd_characters(misread(text, encoding))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("bell \x07", OddCharacters.CONTROL),
        ("\x1b[31mred", OddCharacters.CONTROL),
        ("del \x7f", OddCharacters.CONTROL),
        ("horror\x85an anthology", OddCharacters.CONTROL),
        ("lost \ufffd letter", OddCharacters.REPLACEMENT),
        ("logo \uf8ff", OddCharacters.PRIVATE_USE),
        ("plane \U000f1234 \U0010fffd", OddCharacters.PRIVATE_USE),
        ("\ufffd\x01 cafÃ© \ue000", OddCharacters.CONTROL | OddCharacters.REPLACEMENT | OddCharacters.PRIVATE_USE | OddCharacters.MOJIBAKE),
    ],
)
def test_each_kind(text, kind):
    assert odd_characters(text) == kind

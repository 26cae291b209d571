"""Read text files in UTF-8, with or without a byte order mark, and refuse files in other encodings."""

from __future__ import annotations

import codecs

from gradcam_kit.errors import InputError

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_text(source: str, content: bytes) -> str:
    """Return the text of a file without its byte order mark.

    Raises:
        InputError: the encoding is not UTF-8; the message names the encoding to use.
    """
    check_encoding(source, content[:4096])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise not_utf8(source, f"byte 0x{content[error.start]:02x} in line {line}") from None


def check_encoding(source: str, head: bytes) -> None:
    """Raise InputError if the first bytes of a file are UTF-16 or UTF-32, with or without a byte order mark."""
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            raise not_utf8(source, f"it is {name}")
    if b"\0" in head:
        raise not_utf8(source, "it contains NUL bytes, as UTF-16 does")


def not_utf8(source: str, found: str) -> InputError:
    """Return the error for a file whose text has another encoding."""
    return InputError(f"{source!r} is not UTF-8 ({found}); save it as UTF-8")

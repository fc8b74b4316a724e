"""The bytes of a GGUF's header, read forwards: no length in them is believed before it is checked.

Source of the format: ggml's `docs/gguf.md`.
"""

import struct
from pathlib import Path
from typing import Any

from yarnconv.errors import BadInput
from yarnconv.targets.gguf.file_format import SCALARS, ValueType

MAXIMUM_HEADER = 2**28  # bytes; the largest vocabularies take a tenth of it


def broken(path: Path, what: str, entry: str | None = None) -> BadInput:
    """The error of a file whose bytes are not what they should be; `entry` is the key or tensor."""
    where = f"{path.name}: {entry}" if entry else path.name
    return BadInput(what, where=where, fix="Download or convert the file again.")


class Cursor:
    """Reads forwards through bytes of a file and never past their end."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data = data
        self.path = path
        self.position = 0

    def skip(self, count: int) -> int:
        """Pass over `count` bytes; returns where they began."""
        start = self.position
        if count > len(self.data) - start:
            raise broken(self.path, f"truncated: {count} bytes are missing at byte {start}")
        if start + count > MAXIMUM_HEADER:
            raise broken(self.path, f"a header of more than {MAXIMUM_HEADER} bytes")
        self.position = start + count
        return start

    def number(self, layout: struct.Struct) -> Any:
        """One scalar."""
        return layout.unpack_from(self.data, self.skip(layout.size))[0]

    def length(self) -> int:
        """A length, stored in 64 bits."""
        return int(self.number(SCALARS[ValueType.UINT64]))

    def text(self) -> str:
        """A string of any bytes."""
        size = self.length()
        start = self.skip(size)
        return bytes(self.data[start : start + size]).decode("utf-8", errors="surrogateescape")

    def name(self, what: str) -> str:
        """The name of something, which is UTF-8."""
        text = self.text()
        try:
            text.encode()
        except UnicodeEncodeError:
            raise broken(self.path, f"the name of {what} is no text", text[:40]) from None
        return text

    def value_type(self) -> ValueType:
        """The type of the value that follows."""
        number = self.number(SCALARS[ValueType.UINT32])
        try:
            return ValueType(number)
        except ValueError:
            raise broken(self.path, f"unknown value type {number}") from None

    def skip_value(self, kind: ValueType) -> None:
        """Pass over a value whose type has been read."""
        if kind is ValueType.STRING:
            self.skip(self.length())
        elif kind is ValueType.ARRAY:
            element, count = self.value_type(), self.length()
            if element is ValueType.ARRAY:
                raise broken(self.path, "arrays of arrays, which llama.cpp does not read")
            if element is not ValueType.STRING:
                self.skip(count * SCALARS[element].size)
                return
            self._skip_strings(count)
        else:
            self.skip(SCALARS[kind].size)

    def _skip_strings(self, count: int) -> None:
        # a vocabulary has half a million: a loop without calls of ours takes a quarter of the time
        length_at, last = SCALARS[ValueType.UINT64].unpack_from, len(self.data) - 8
        position = self.position
        for _ in range(count):
            if position > last:  # at the file's end at the latest
                position += 8
                break
            position += 8 + length_at(self.data, position)[0]
        self.skip(position - self.position)

    def value(self, kind: ValueType) -> Any:
        """A value whose type has been read: a Python scalar, a string, or a list of them."""
        if kind is ValueType.STRING:
            return self.text()
        if kind is not ValueType.ARRAY:
            return self.number(SCALARS[kind])
        element, count = self.value_type(), self.length()
        if element is ValueType.STRING:
            return [self.text() for _ in range(count)]
        layout = SCALARS[element]
        start = self.skip(count * layout.size)
        return list(struct.unpack_from(f"<{count}{layout.format[-1]}", self.data, start))

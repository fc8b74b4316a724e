"""Values of a GGUF's keys as they are shown: a stranger's list may have a hundred million of them."""

import struct
from collections.abc import Iterable

from yarnconv.targets.gguf.file_format import SCALARS, ValueType
from yarnconv.targets.gguf.reader import GgufFile

MOST_KEYS = 256
MOST_VALUES = 64  # of a list that is shown whole
MOST_BYTES = 4096  # of a text, or of a list of them, that is shown whole
FIRST = 4  # values of a longer list
_TYPE, _HEAD = 4, 4 + 4 + 8  # bytes of a type, and of a list's before its values


def _shown_list(artefact: GgufFile, key: str) -> object:
    data = artefact.packed[key]
    element, count = (ValueType(int.from_bytes(data[4:8], "little")), int.from_bytes(data[8:16], "little"))
    if count <= MOST_VALUES and len(data) <= MOST_BYTES:
        return artefact.value(key)
    text = f"{count} values of type {element.name.lower()}"
    if element is ValueType.STRING:
        return text
    first = struct.unpack_from(f"<{min(count, FIRST)}{SCALARS[element].format[-1]}", data, _HEAD)
    return f"{text}: {', '.join(map(str, first))}, ..."


def shown_value(artefact: GgufFile, key: str) -> object:
    """A Python scalar, string or short list; of what is long its type, its length and how it begins. None
    where the key is missing.
    """
    data = artefact.packed.get(key)
    if data is None:
        return None
    kind = ValueType(int.from_bytes(data[:_TYPE], "little"))
    if kind is ValueType.ARRAY:
        return _shown_list(artefact, key)
    if kind is ValueType.STRING and len(data) > MOST_BYTES:
        begin = _TYPE + 8
        text = data[begin : begin + MOST_VALUES].decode("utf-8", errors="replace")
        return f"a text of {len(data) - begin} bytes: {text}..."
    return artefact.value(key)


def shown_keys(artefact: GgufFile, keys: Iterable[str]) -> dict[str, object]:
    """Keys with their values; of more than a file has the first, and how many there are beside them."""
    every = list(keys)
    shown = {key: shown_value(artefact, key) for key in every[:MOST_KEYS]}
    return shown if len(every) <= MOST_KEYS else {**shown, "...": f"{len(every) - MOST_KEYS} more keys"}

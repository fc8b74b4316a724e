"""A parser of Ollama's Modelfile, after its documented grammar: no package has one.

    # comment
    INSTRUCTION value

A value is the rest of its line, or a text between quotation marks, one or three, which may run over lines and
ends where they stand at a line's end. Nothing is escaped. What is not printable is lost on the way, so that a
file with any in it is an error here.
"""

INSTRUCTIONS = {"FROM", "PARAMETER", "TEMPLATE"}  # of all there are, those that are written
MARKS = ('"""', '"')


def _unquoted(value):
    """The text of a whole value; None where its closing marks are still to come."""
    for mark in MARKS:
        if value.startswith(mark):
            whole = value.endswith(mark) and len(value) >= 2 * len(mark)
            return value[len(mark) : -len(mark)] if whole else None
    return value


def parse_modelfile(text):
    """[(instruction, value)]; of PARAMETER (PARAMETER, name, value)."""
    lost = [letter for letter in text if letter != "\n" and not letter.isprintable()]
    assert not lost, f"a Modelfile loses {lost!r}"
    found, lines = [], iter(text.split("\n"))
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        instruction, _, value = line.lstrip().partition(" ")
        assert instruction in INSTRUCTIONS, line
        name = None
        if instruction == "PARAMETER":
            name, _, value = value.partition(" ")
            assert name.replace("_", "").isalnum(), line
        value = value.strip(" ")
        while (whole := _unquoted(value)) is None:
            value += "\n" + next(lines)
        assert value
        found.append((instruction, whole) if name is None else (instruction, name, whole))
    return found

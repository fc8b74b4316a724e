"""What every card has to be, whatever is in it."""


def assert_tidy(text):
    """Blank lines, headings, quotations and tables stand as Markdown wants them."""
    lines = text.split("\n")
    assert lines[-1] == ""
    for above, line in zip(["", *lines], lines, strict=False):
        assert line == line.rstrip()
        assert above or line or above is lines[0], "two blank lines"
        if line.startswith(("#", ">")):
            assert not above, line
        if above and line:
            assert above.startswith("|") == line.startswith("|"), line

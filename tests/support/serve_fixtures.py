"""`zs serve` in processes of its own, on real ports."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys

from zs_lib.config import paths
from zs_lib.engines import SearchRequest

TOKEN = "planted-token-51c"
CORPUS = [
    {"id": "7", "contents": '"France"\nThe capital of France is Paris.'},
    {"id": 8, "contents": '"Spain"\nThe capital of Spain is Madrid.'},
    {"id": "9", "contents": '"Vigo"\nVigo is a city by the sea.'},
]


class Served:
    """A `zs serve` process that said it is ready."""

    def __init__(self, process, line):
        self.process, self.line = process, line
        self.url = re.search(r"http://[\w.:]+:\d+", line)[0]
        self.port = int(self.url.rsplit(":", 1)[1])

    def stop(self, by=signal.SIGTERM) -> int:
        """The exit code; afterwards nobody listens."""
        self.process.send_signal(by)
        code = self.process.wait(20)
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", self.port)) != 0
        return code


@contextlib.contextmanager
def serving(*arguments, **environment):
    process = subprocess.Popen(
        [sys.executable, "-m", "zs_lib", "serve", *arguments, "--port", "0"],
        cwd=paths.ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield Served(process, line)
    finally:
        process.kill()
        process.communicate()


def request(query, key=(0,), noisy=False):
    return SearchRequest(query, "which?", ("Paris",), noisy, key)

"""`zs serve` in processes of its own, on real ports."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys

import forks

from zs_lib import cli
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


class Forked:
    """`zs serve` in a forked process, which has torch already; with what is used here of `Popen`."""

    def __init__(self, arguments, environment):
        (self.stdout, out), (self.stderr, err) = (forks.FORKS.Pipe(duplex=False) for _ in range(2))
        self._process = forks.start(_serve, arguments, environment, out, err)
        out.close(), err.close()
        self.stdout, self.stderr = (open(os.dup(end.fileno())) for end in (self.stdout, self.stderr))
        self.pid, self.kill, self.terminate = self._process.pid, self._process.kill, self._process.terminate

    def send_signal(self, number):
        os.kill(self.pid, number)

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout):
        assert (code := forks.exit_code(self._process, timeout)) is not None, "it did not end in time"
        return code


def _serve(arguments, environment, out, err):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(paths.ROOT)
    for end, name in ((out, "stdout"), (err, "stderr")):
        os.dup2(end.fileno(), getattr(sys, f"__{name}__").fileno())
        setattr(sys, name, open(end.fileno(), "w", buffering=1, closefd=False))
    sys.exit(cli.main(["serve", *arguments]))


@contextlib.contextmanager
def serving(*arguments, **environment):
    """A server on a free port: a retriever by the command itself, a simulator by a fork."""
    arguments, environment = (*arguments, "--port", "0"), {**os.environ, **environment}
    if arguments[0] == "simulator":
        process = Forked(arguments, environment)
    else:
        command = [sys.executable, "-m", "zs_lib", "serve", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=paths.ROOT, text=True, env=environment, **pipes)
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield Served(process, line)
    finally:
        process.kill()
        process.wait(20)
        process.stdout.close()
        process.stderr.close()


def request(query, key=(0,), noisy=False):
    return SearchRequest(query, "which?", ("Paris",), noisy, key)

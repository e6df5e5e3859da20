"""Kernels for notebooks that start at once: forks of a process that has imported what they need.

Importing torch and transformers takes seconds of a core, and the study has fourteen notebooks. The standard
library's fork server imports them once in each process that executes notebooks, and every kernel begins as a
copy of it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from multiprocessing.process import BaseProcess
from typing import Any
from uuid import uuid4

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # else asking for GPUs bars forks from them
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["torch", "transformers", "pandas", "ipykernel.kernelapp", "zs_lib.ui.notebook", "zs_lib.ui.lessons"]
)


class ForkedKernelManager(AsyncKernelManager):
    """Start kernels as forks instead of as new interpreters."""

    async def _async_pre_start_kernel(self, **options: Any) -> Any:
        self.kernel_id = self.kernel_id or str(uuid4())
        self.provisioner = _ForkedKernel(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)
        return await super()._async_pre_start_kernel(**options)


class _Fork(FORKS.Process):
    """A forked process, with what jupyter_client asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int | None:
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class _ForkedKernel(LocalProvisioner):
    async def launch_kernel(self, cmd: list[str], **options: Any) -> dict:
        self.cwd = options.get("cwd")
        self.process = _Fork(target=_begin, args=(self.parent.connection_file, options["env"], self.cwd))
        self.process.start()
        self.pid = self.pgid = self.process.pid
        return self.connection_info


def _begin(connection_file: str, environment: dict[str, str], folder: str | None) -> None:
    """Become a kernel in a process group of its own, which ends with the process that started it."""
    import matplotlib
    from ipykernel.kernelapp import IPKernelApp

    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder or ".")
    matplotlib.rcParams["backend"] = "module://matplotlib_inline.backend_inline"  # a kernel's, set at import
    sys.argv = ["ipykernel_launcher", "-f", connection_file, f"--IPKernelApp.parent_handle={os.getppid()}"]
    IPKernelApp.launch_instance()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)

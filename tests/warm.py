"""A Python that has imported torch, diffusers and the like already: programs start at once in it.

Most jobs of a test take a second, and importing these libraries takes five. `python()` starts a
process that has imported them, and nothing of this project, and returns the path of a small client
named `python`. The client asks that process for a fork, which runs `python -m PROGRAM` or
`python -c CODE` as usual: with the client's arguments, folder, variables and streams, and with
modules of this project read anew from its PYTHONPATH. The client ends with the fork's exit code,
and if it is killed, so is the fork with all that it started. The lease, which imports nothing slow,
and whatever is not such a program run in a Python of their own, as does a job that may go online,
since huggingface_hub reads HF_HUB_OFFLINE when it is imported.
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIBRARIES = (
    "numpy", "pandas", "pyarrow", "pydantic", "yaml", "PIL.Image", "safetensors.torch",
    "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf", "matplotlib.figure",
    "scipy.stats", "skimage.metrics", "jinja2", "snakemake.cli", "snakemake.report", "torch",
    "torch._dynamo", "torchmetrics", "transformers.models.clip.modeling_clip",
    "transformers.models.t5.modeling_t5", "diffusers.pipelines.flux.pipeline_flux",
)  # fmt: skip
CLIENT = """#!{executable} -IS
import json, os, socket, sys

option, program, *_ = [*sys.argv[1:], "", ""]
package = program.partition(".")[0]
offline = os.environ.get("HF_HUB_OFFLINE") == "1"
warm = package == "snakemake" or offline and (option == "-c" or package in {packages})
if option not in ("-c", "-m") or not warm or program == "reproduction.devices.lease":
    os.execv({executable!r}, [{executable!r}, *sys.argv[1:]])
asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX) as link:
    link.connect({address!r})
    socket.send_fds(link, [len(asked).to_bytes(4, "big")], [0, 1, 2])
    link.sendall(asked)
    code = link.recv(1)
sys.exit(code[0] if code else "the warm Python ended")
"""
PACKAGES = ("reproduction", "eigencache", "benchmarks", "training")


@functools.cache
def python() -> str:
    """Start the process, and return the path of the client to call in place of `python`.

    Elsewhere than on Linux it is this Python: a fork of what has imported so much may fail there.
    """
    if sys.platform != "linux":
        return sys.executable
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    address, client = str(folder / "socket"), folder / "python"
    client.write_text(CLIENT.format(executable=sys.executable, packages=PACKAGES, address=address))
    client.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, __file__, address, client], stdin=subprocess.PIPE, cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip

    def end():
        process.stdin.close()
        process.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    while not Path(address).exists():
        assert process.poll() is None, "the warm Python did not start"
        time.sleep(0.05)
    return str(client)


# ---- The process


def serve(address: str) -> list[str]:
    """Fork at every request, until standard input ends; return in a fork, as the request says.

    Returns:
        "-m" and the program, or "-c" and the code, and its arguments.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(64)
    os.rename(f"{address}.new", address)  # who sees it can connect
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        link, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return kept(link)
        link.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    os._exit(0)


def kept(link: socket.socket) -> list[str]:
    """Fork once more; return in that fork, and in this one keep watch of it until it ends."""
    size, streams, *_ = socket.recv_fds(link, 4, 3)
    text = b""
    while len(text) < int.from_bytes(size, "big"):
        text += link.recv(1 << 20)
    arguments, folder, environment = json.loads(text)
    job = os.fork()
    if job:
        while not (ended := os.waitpid(job, os.WNOHANG))[0]:
            if select.select([link], [], [], 0.02)[0]:  # the client is gone
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(job, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(ended[1])
        with contextlib.suppress(BrokenPipeError):
            link.send(bytes([code if code >= 0 else 128 - code]))
        os._exit(0)
    os.setsid()
    link.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    own = environment.get("PYTHONPATH")
    sys.path[0:1] = [folder, *(own.split(os.pathsep) if own else [])]
    return arguments


if __name__ == "__main__":
    import importlib
    import runpy
    import threading
    import traceback

    for name in LIBRARIES:
        with contextlib.suppress(ImportError):  # of an extra that is not installed
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or else every fork looks through all of it again
    option, program, *rest = serve(sys.argv[1])
    sys.executable = sys.argv[2]
    sys.argv = [option if option == "-c" else program, *rest]
    code = 0
    try:
        if option == "-c":
            with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
                file.write(program)
                file.flush()
                runpy.run_path(file.name, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    # As an interpreter ends, but for taking all of those libraries apart, which takes a second.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

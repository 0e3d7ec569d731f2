"""A model hub on loopback that speaks Hugging Face's protocol, and serves one repository."""

import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import constants
from huggingface_hub.utils import close_session

REPOSITORY, COMMIT, TOKEN = "someone/tiny-flux", "a" * 40, "hf_secret"
WEIGHTS = "transformer/weights.safetensors"
INDEX = {
    "_class_name": "FluxPipeline",
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
}
FILES = {
    "README.md": b"a card",
    "single-file.safetensors": bytes(9000),
    "model_index.json": json.dumps(INDEX).encode(),
    "scheduler/scheduler_config.json": b"{}",
    "transformer/config.json": b'{"a": 1}',
    WEIGHTS: bytes(i * i % 251 for i in range(200_000)),
}


class Hub:
    """What the stand-in serves, how it misbehaves, and what it was asked."""

    def __init__(self):
        self.files, self.commits = dict(FILES), {"main": COMMIT, COMMIT: COMMIT}
        self.gated, self.busy, self.cuts = False, 0, []  # cuts: bytes sent until each next cut
        self.damaged = set()
        self.stated = {}  # other hashes than the files have
        self.requests, self.sent = [], {}
        self.addresses = []

    def info(self, commit):
        siblings = []
        for name, data in self.files.items():
            entry = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
            if name.endswith(".safetensors"):
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            if name in self.stated:
                entry["blobId"] = self.stated[name]
                if "lfs" in entry:
                    entry["lfs"]["sha256"] = self.stated[name]
            siblings.append(entry)
        return {"id": REPOSITORY, "sha": commit, "private": False, "siblings": siblings,
                "downloads": 0, "likes": 0, "tags": []}  # fmt: skip

    def asked_for(self, name):
        """The Range of every request for a file's bytes, None for the whole."""
        return [r["range"] for r in self.requests if r["path"].endswith(name) and r["data"]]


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        state, path = self.server.hub, self.path.split("?")[0]
        on_cdn = path.startswith("/cdn/")
        self.note = {"path": path, "range": self.headers["Range"], "data": False,
                     "token": self.headers["Authorization"], "cdn": on_cdn}  # fmt: skip
        state.requests.append(self.note)
        if state.busy:
            state.busy -= 1
            return self.answer(503)
        if on_cdn:
            return self.send_file(path.removeprefix("/cdn/"))
        api = re.fullmatch(r"/api/models/(\w+/[\w-]+)(?:/revision/(\w+))?", path)
        file = re.fullmatch(r"/(\w+/[\w-]+)/resolve/(\w+)/(.+)", path)
        if not (api or file):  # the library asks for other things of a hub too
            return self.answer(404)
        repository, revision, *_ = (api or file).groups()
        if repository != REPOSITORY:
            return self.answer(401, {"X-Error-Code": "RepoNotFound"})
        if (revision or "main") not in state.commits:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        commit = state.commits[revision or "main"]
        if api:
            return self.answer(200, data=json.dumps(state.info(commit)).encode())
        if state.gated and self.headers["Authorization"] != f"Bearer {TOKEN}":
            status = 403 if self.headers["Authorization"] else 401
            return self.answer(status, {"X-Error-Code": "GatedRepo"})
        name, data = file[3], state.files.get(file[3])
        if data is None:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        if name.endswith(".safetensors"):
            return self.answer(302, {
                "Location": f"{state.addresses[1]}/cdn/{name}", "X-Repo-Commit": commit,
                "X-Linked-Size": str(len(data)), "X-Linked-ETag": hashlib.sha256(data).hexdigest(),
            })  # fmt: skip
        return self.send_file(name, {"X-Repo-Commit": commit, "ETag": git_sha1(data)})

    def answer(self, status, headers=None, data=b""):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_file(self, name, headers=None):
        state, self.note["data"] = self.server.hub, True
        data = state.files[name]
        if name in state.damaged:
            data = b"\1" + data[1:]
        start = int(self.headers["Range"][len("bytes=") : -1]) if self.headers["Range"] else 0
        part = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self.send_response(206 if start else 200)
        for key, value in (
            {"Content-Length": str(len(data) - start)} | part | (headers or {})
        ).items():
            self.send_header(key, value)
        self.end_headers()
        cut = state.cuts.pop(0) if state.cuts and name == WEIGHTS else None
        if self.command == "HEAD":
            return
        body = data[start:] if cut is None else data[start : start + cut]
        state.sent[name] = state.sent.get(name, 0) + len(body)
        self.wfile.write(body)
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(2)
            self.close_connection = True


@contextlib.contextmanager
def serving(state, patch, handler=Handler):
    """Serve a hub, at its address as HF_ENDPOINT; a second port stands for another host."""
    servers = []
    for _ in range(2):
        one = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        one.daemon_threads, one.hub = True, state
        threading.Thread(target=one.serve_forever, args=(0.02,), daemon=True).start()
        state.addresses.append(f"http://127.0.0.1:{one.server_port}")
        servers.append(one)
    address = state.addresses[0]
    patch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    patch.delenv("HF_TOKEN", raising=False)
    patch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    yield state
    close_session()
    for one in servers:
        one.shutdown()
        one.server_close()

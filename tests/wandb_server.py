"""A W&B server on this machine that keeps what `wandb sync` brings: W&B's own reader of offline runs, without an account.

It answers what W&B's client asks (GraphQL over HTTP, as wandb 0.31 does) as far as syncing needs; artifacts are told to be
there already, so that their files stay where they are.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

KEY = "k" * 40


@contextmanager
def server(accepts: str = KEY):
    """A server that takes the key `accepts`: gives its `url`, and what it was brought.

    `upserts`: the variables of each UpsertBucket; `history` and `summary`; `artifacts`: the input of each
    CreateArtifact; `files`: {name: bytes}.
    """
    kept = SimpleNamespace(upserts=[], history=[], summary={}, artifacts=[], files={}, asked=[])

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            status, reply = 200, {}
            if self.path == "/graphql":
                request = json.loads(body)
                status, reply = _graphql(kept, self, request, accepts)
            elif self.path.endswith("/file_stream"):
                _stream(kept, json.loads(body))
            elif self.command == "PUT":
                kept.files[self.path.removeprefix("/put/")] = body
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.url = f"http://127.0.0.1:{http.server_address[1]}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield kept
    finally:
        http.shutdown()
        http.server_close()


def synced(folder):
    """What `wandb sync` brings of the offline runs below `folder`: [server's record of each, in the order of time]."""
    found = []
    for run in sorted(folder.glob("wandb/offline-run-*")):
        with server() as kept:
            env = {**os.environ, "WANDB_BASE_URL": kept.url, "WANDB_API_KEY": KEY}
            env.pop("WANDB_MODE", None)
            command = [sys.executable, "-m", "wandb", "sync", str(run)]
            done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            first = kept.upserts[0]
            kept.run = {key: first[key] for key in ("displayName", "groupName", "jobType", "project")}
            kept.config = {key: one["value"] for key, one in json.loads(kept.upserts[-1]["config"]).items()}
            kept.folder = run
            found.append(kept)
    return found


def _graphql(kept, handler, request, accepts):
    name = re.search(r"(?:query|mutation)\s+(\w+)", request["query"]).group(1)
    variables = request.get("variables") or {}
    kept.asked.append(name)
    credentials = handler.headers.get("authorization", "").removeprefix("Basic ")
    if base64.b64decode(credentials).decode() != f"api:{accepts}":
        return 401, {"errors": [{"message": "user is not logged in"}]}
    data = {}
    if name == "UpsertBucket":
        kept.upserts.append(variables)
        bucket = {
            "id": "run",
            "name": variables["name"],
            "displayName": variables.get("displayName") or "run",
            "config": "{}",
            "project": {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "entity"}},
            "historyLineCount": 0,
        }
        data = {"upsertBucket": {"bucket": bucket, "inserted": True}}
    elif name == "CreateArtifact":
        kept.artifacts.append(variables["input"])
        data = {
            "createArtifact": {
                "artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
            }
        }
    elif name == "CreateRunFiles":
        files = [{"name": one, "uploadUrl": f"{kept.url}/put/{one}"} for one in variables["files"]]
        data = {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}
    elif "viewer" in request["query"]:
        data = {"viewer": {"id": "v", "entity": "entity", "username": "user", "flags": "{}", "teams": {"edges": []}}}
    elif name == "ServerFeaturesQuery":
        data = {"serverInfo": {"features": []}}
    return 200, {"data": data}


def _stream(kept, body):
    for name, file in (body.get("files") or {}).items():
        lines = [json.loads(line) for line in file["content"]]
        if name == "wandb-history.jsonl":
            kept.history += lines
        elif name == "wandb-summary.json":
            kept.summary |= lines[-1]

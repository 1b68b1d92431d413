"""A local W&B server that records what `wandb sync` uploads, so that tests read offline runs without an account.

It answers the requests of W&B's client (GraphQL over HTTP, as of wandb 0.31) as far as syncing needs them. It reports
artifacts as already committed, so that the client does not upload their files.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from contextlib import contextmanager
from types import SimpleNamespace

from loopback import Quiet, serving

KEY = "k" * 40


@contextmanager
def server(accepts: str = KEY):
    """A server that accepts the key `accepts`; yields a record of its `url`, of the names of all GraphQL operations
    (`asked`) and of {id: what was uploaded of the run} (`runs`).

    Of a run: `upserts`, the variables of each UpsertBucket; `history` and `summary`; `artifacts`, the input of each
    CreateArtifact; `files`, {name: bytes}; `exit_code`.
    """
    record = SimpleNamespace(asked=[], runs=defaultdict(_run))

    class Handler(Quiet):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            status, reply = 200, {}
            if self.path == "/graphql":
                request = json.loads(body)
                status, reply = _graphql(record, self, request, accepts)
            elif self.path.endswith("/file_stream"):
                _stream(record.runs[self.path.split("/")[-2]], json.loads(body))
            elif self.command == "PUT":
                run, _, name = self.path.removeprefix("/put/").partition("/")
                record.runs[run].files[name] = body
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = answer

    with serving(Handler) as port:
        record.url = f"http://127.0.0.1:{port}"
        yield record


def synced(folder):
    """Sync the offline runs below `folder`, and return what the server has of each, from the first run to the last.

    A run also has the names of the `run` and its `config`.
    """
    folders = sorted(folder.glob("wandb/offline-run-*"))
    assert folders, "there is no offline run"  # without paths, wandb would ask which ones
    with server() as record:
        env = {**os.environ, "WANDB_BASE_URL": record.url, "WANDB_API_KEY": KEY}
        env.pop("WANDB_MODE", None)
        command = [sys.executable, "-m", "wandb", "sync", *map(str, folders)]
        result = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    runs = [record.runs[path.name.rpartition("-")[2]] for path in folders]
    for run in runs:
        first = run.upserts[0]
        run.run = {key: first[key] for key in ("displayName", "groupName", "jobType", "project")}
        run.config = {key: entry["value"] for key, entry in json.loads(run.upserts[-1]["config"]).items()}
    return runs


def _run():
    return SimpleNamespace(upserts=[], history=[], summary={}, artifacts=[], files={}, exit_code=None)


def _graphql(record, handler, request, accepts):
    name = re.search(r"(?:query|mutation)\s+(\w+)", request["query"]).group(1)
    variables = request.get("variables") or {}
    record.asked.append(name)
    credentials = handler.headers.get("authorization", "").removeprefix("Basic ")
    if base64.b64decode(credentials).decode() != f"api:{accepts}":
        return 401, {"errors": [{"message": "user is not logged in"}]}
    data = {}
    if name == "UpsertBucket":
        record.runs[variables["name"]].upserts.append(variables)
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
        record.runs[variables["input"]["runName"]].artifacts.append(variables["input"])
        artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
        data = {"createArtifact": {"artifact": artifact}}
    elif name == "CreateRunFiles":
        url = f"{record.url}/put/{variables['run']}"
        files = [{"name": file, "uploadUrl": f"{url}/{file}"} for file in variables["files"]]
        data = {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}
    elif "viewer" in request["query"]:
        data = {"viewer": {"id": "v", "entity": "entity", "username": "user", "flags": "{}", "teams": {"edges": []}}}
    elif name == "ServerFeaturesQuery":
        data = {"serverInfo": {"features": []}}
    return 200, {"data": data}


def _stream(run, body):
    run.exit_code = body.get("exitcode", run.exit_code)
    for name, file in (body.get("files") or {}).items():
        lines = [json.loads(line) for line in file["content"]]
        if name == "wandb-history.jsonl":
            run.history += lines
        elif name == "wandb-summary.json":
            run.summary |= lines[-1]

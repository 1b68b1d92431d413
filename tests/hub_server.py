"""A loopback server that answers as the Hugging Face hub does, so that tests use its real client without the network.

It imitates, as read in huggingface_hub 2.4 and in reports of its users: a repository's info, the pages of its file
list, `resolve` (a small file is redirected to a relative address, a large one to storage under another name of the
host, which must not see the token), Range, and what the hub says to a missing, private or gated repository.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

from loopback import Quiet, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "t" * 34
LARGE = 5000  # bytes from which on a file lies in storage
PAGE = 3  # names a page of the file list


@dataclass
class Repo:
    """`files` are {name: bytes} at `commit`, to which `refs` lead; access is public, private, or gated by terms."""

    files: dict[str, bytes]
    commit: str = COMMIT
    refs: tuple[str, ...] = ("main",)
    access: str = "public"
    members: tuple[str, ...] = field(default=(TOKEN,))


def of_folder(folder, **keys):
    """A Repo of the files in a folder."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return Repo({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}, **keys)


@contextmanager
def serve(repos: dict[str, Repo]):
    """A server of {"models/owner/name" or "datasets/owner/name": Repo}; yields a record with its `url`.

    `asked`: (method, path, Range, whether with a token) of each request; `fetched`: the files whose bytes were read;
    `fails`: (pattern, status) of the next requests whose path matches, one each, which end with that status, or for
    status 0 in the middle of the body.
    """
    record = SimpleNamespace(asked=[], fetched=[], fails=[])

    class Handler(Quiet):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            answer(self, repos, record)

        do_HEAD = do_GET

    with serving(Handler) as port:
        record.url, record.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}/storage"
        yield record


@contextmanager
def client(monkeypatch, cache, record, token=None):
    """Let the hub's client in this process ask the server `record`, and nothing else, with `cache` for its files."""
    from huggingface_hub.utils import _http

    for name, value in {"HF_HUB_OFFLINE": False, "ENDPOINT": record.url, "HF_HUB_CACHE": str(cache)}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    template = record.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries of a request
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(cache / "token"))
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    _http.close_session()
    yield record
    _http.close_session()


def answer(request, repos, record):
    address = urlsplit(request.path)
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    record.asked.append((request.command, unquote(address.path), request.headers.get("range"), bool(token)))
    failure = next((fail for fail in record.fails if re.search(fail[0], unquote(address.path))), None)
    if failure:
        record.fails.remove(failure)
        if failure[1]:
            return send(request, failure[1], b"", {"retry-after": "0"} if failure[1] == 429 else {})
    if address.path.startswith("/storage/"):
        return storage(request, repos, record, address.path.rpartition("/")[2], cut=bool(failure))
    target = locate(repos, address.path)
    if target is None:
        return refuse(request, 404, "EntryNotFound", "no such page")
    name, repo, what, rest = target
    if repo is None or (repo.access == "private" and token not in repo.members):
        return refuse(request, 401 if not token else 404, "RepoNotFound", "Repository not found")
    if what == "info":
        revision = unquote(rest) or "main"
    else:
        revision, _, rest = rest.partition("/")
        revision = unquote(revision)
    if revision not in (repo.commit, *repo.refs):
        return refuse(request, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
    if what == "info":
        return send_json(request, {"id": name, "sha": repo.commit, "siblings": [{"rfilename": n} for n in repo.files]})
    if what == "tree":
        return tree(request, repo, record, parse_qs(address.query))
    return resolve(request, name, repo, record, unquote(rest), token)


def locate(repos, path):
    """(key of the repository, the Repo or None, what is asked of it, the rest of the path), or None."""
    cached = path.startswith("/api/resolve-cache/")
    path = re.sub("^/api/resolve-cache/(models|datasets)/([^/]+/[^/]+)/", r"/\1/\2/resolve/", path)
    if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree)/(.*))?", path):
        kind, name, what, rest = match.groups()
        key = f"{kind}/{name}"
        return key, repos.get(key), "tree" if what == "tree" else "info", rest or ""
    if match := re.fullmatch(r"/(?:(datasets|models)/)?([^/]+/[^/]+)/resolve/(.*)", path):
        kind, name, rest = match.groups()
        key = f"{kind or 'models'}/{name}"
        return key, repos.get(key), "cached" if cached else "resolve", rest
    return None


def tree(request, repo, record, query):
    start = int(query.get("cursor", ["0"])[0])
    names = list(repo.files)
    folders = {parent for name in names for parent in map(str, Path(name).parents) if parent != "."}
    entries = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
    for name in names:
        data = repo.files[name]
        entry = {"type": "file", "path": name, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}
        if len(data) >= LARGE:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        entries.append(entry)
    headers = {}
    if start + PAGE < len(entries):
        path = urlsplit(request.path).path
        headers["link"] = f'<{record.url}{path}?recursive=True&cursor={start + PAGE}>; rel="next"'
    send_json(request, entries[start : start + PAGE], headers)


def resolve(request, name, repo, record, file, token):
    if repo.access == "gated" and token not in repo.members:
        kind, _, id = name.partition("/")
        if not token:
            text = f"Access to {kind[:-1]} {id} is restricted. You must have access to it and be authenticated to access it. Please log in."
            return refuse(request, 401, "GatedRepo", text)
        text = f"Access to {kind[:-1]} {id} is restricted and you are not in the authorized list. Visit {record.url}/{id} to ask for access."
        return refuse(request, 403, "GatedRepo", text)
    if file not in repo.files:
        return refuse(request, 404, "EntryNotFound", "Entry not found", {"x-repo-commit": repo.commit})
    data = repo.files[file]
    headers = {"x-repo-commit": repo.commit, "accept-ranges": "bytes"}
    if len(data) >= LARGE:
        digest = hashlib.sha256(data).hexdigest()
        headers |= {"x-linked-etag": f'"{digest}"', "x-linked-size": str(len(data))}
        return send(request, 302, b"", headers | {"location": f"{record.storage}/{digest}"})
    if not request.path.startswith("/api/resolve-cache/"):
        return send(request, 307, b"", headers | {"location": f"/api/resolve-cache/{name}/{repo.commit}/{file}"})
    if request.command == "GET":
        record.fetched.append(file)
    send_range(request, data, headers | {"etag": f'"{hashlib.sha1(data).hexdigest()}"'})


def storage(request, repos, record, digest, cut):
    for repo in repos.values():
        for file, data in repo.files.items():
            if hashlib.sha256(data).hexdigest() == digest:
                if request.command == "GET" and file not in record.fetched:
                    record.fetched.append(file)
                return send_range(request, data, {"etag": f'"{digest}"', "accept-ranges": "bytes"}, cut)
    return send(request, 404, b"")


def send_range(request, data, headers, cut=False):
    """The bytes that Range asks for; with `cut`, the connection ends after half of them."""
    status, first, last = 200, 0, len(data) - 1
    if match := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range") or ""):
        first, last = int(match[1]), min(int(match[2] or last), last)
        status, headers = 206, headers | {"content-range": f"bytes {first}-{last}/{len(data)}"}
    body = data[first : last + 1]
    if cut:
        request.close_connection = True
        return send(request, status, body[: len(body) // 2], headers | {"content-length": str(len(body))})
    send(request, status, body, headers)


def refuse(request, status, code, text, headers=None):
    body = json.dumps({"error": text}).encode()
    headers = {**(headers or {}), "x-error-code": code, "x-error-message": text, "content-type": "application/json"}
    send(request, status, body, headers | {"x-request-id": "Root=1-66f4b037-1bf3d7d219afbc904ee05694"})


def send_json(request, value, headers=None):
    send(request, 200, json.dumps(value).encode(), {"content-type": "application/json", **(headers or {})})


def send(request, status, body, headers=None):
    request.send_response(status)
    for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
        request.wfile.flush()

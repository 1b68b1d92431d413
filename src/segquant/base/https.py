"""Fetch a file over https from a server that may be hostile.

Redirects stay on https and do not lead from the internet into a private network. Size, silence and redirects have
limits. What a URL hides (a password, a signature) is in no message.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, responses
from ipaddress import ip_address
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from segquant.base.errors import one_line
from segquant.base.progress import progress
from segquant.base.text import shown_url

_SECONDS = 30  # without a byte: a host with two addresses that do not answer is given up after a minute
_CHUNK = 1 << 16


class FetchError(Exception):
    """Why a file cannot be fetched, in one line; `status` is that of HTTP, 0 where there is none."""

    def __init__(self, reason: str, status: int = 0):
        super().__init__(reason)
        self.status = status


def problem(url: str) -> str | None:
    """What is wrong with a URL, to follow "it"; None where `fetch` takes it."""
    try:
        parts = urlsplit(url)
        valid = parts.hostname and parts.port != 0 and not re.search(r"[\x00-\x20\x7f]", url)
    except ValueError:
        valid = False
    if not valid:
        return "is no valid URL"
    if parts.scheme != "https":
        return "is not https"
    return "has a user or a password, which records would keep" if "@" in parts.netloc else None


def fetch(url: str, target: Path, limit: int, quiet: bool = True) -> None:
    """Write the file behind a URL to `target`, at most `limit` bytes; with a progress bar unless `quiet`.

    Raises FetchError for a URL with a `problem`, a redirect that is not followed, and a server or network that fails.
    """
    if reason := problem(url):
        raise FetchError(f"it {reason}")
    with _network():  # urllib's opener of the whole process may keep certificates that were trusted before
        response = build_opener(_Redirects).open(url, timeout=_SECONDS)
    size, length = 0, response.length
    with (
        response,
        open(target, "wb") as file,
        progress(total=length or 0, desc=target.name, unit="B", quiet=quiet or not length, scale=True) as bar,
    ):
        while chunk := _read(response):
            size += len(chunk)
            if size > limit:
                raise FetchError(f"it has more than {limit:,} bytes")
            file.write(chunk)
            bar.update(len(chunk))
    if size < (length or 0):
        raise FetchError(f"the connection ended after {size:,} of {length:,} bytes")


class _Redirects(HTTPRedirectHandler):
    """Follows at most ten redirects (urllib's limit), each of which `problem` and `_leads_inside` let pass."""

    def redirect_request(self, request, response, code, message, headers, url):
        response.close()  # else its body is read, however long it is
        reason = problem(url) or ("is in a private network" if _leads_inside(request.full_url, url) else None)
        if reason:
            raise FetchError(f"it redirects to {shown_url(url)}, which {reason}")
        return Request(url)


def _leads_inside(source: str, target: str) -> bool:
    """Whether `source` is on the internet and `target` on this machine or in a private network, by their addresses.

    A name that only a proxy resolves is on the internet. A name that resolves differently later gains nothing: the
    server that is reached then must have a certificate of that name.
    """
    return any(_public(source)) and not all(_public(target))


def _public(url: str) -> list[bool]:
    """For each address of a URL's host, whether it is on the internet."""
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(urlsplit(url).hostname, None)}
    except (OSError, ValueError):  # ValueError: no name at all
        return [True]
    return [ip_address(address).is_global for address in addresses]


def _read(response) -> bytes:
    with _network():
        return response.read(_CHUNK)


@contextmanager
def _network() -> Iterator[None]:
    """Turn what urllib raises into a FetchError, with no words of the server's."""
    try:
        yield
    except HTTPError as error:
        error.close()
        nowhere = ": too many redirects, or one that names no web page" if error.code // 100 == 3 else ""
        raise FetchError(f"HTTP {error.code} {responses.get(error.code, '')}{nowhere}", error.code) from error
    except HTTPException as error:
        raise FetchError(f"the answer breaks off or is not HTTP ({type(error).__name__})") from error
    except (OSError, ValueError) as error:  # ValueError: letters beyond ASCII in a path
        reason = getattr(error, "reason", error)
        silent = isinstance(reason, TimeoutError)
        raise FetchError(f"no answer for {_SECONDS} seconds" if silent else one_line(reason)) from error

"""Check whether an API key exists, without reading its value."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit


def has_wandb_key() -> bool:
    """Whether W&B will find a key: in WANDB_API_KEY, or in the netrc file where `wandb login` stores it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        logins = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc")
    except (OSError, netrc.NetrcParseError):
        return False
    server = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    return logins.authenticators(server or "") is not None

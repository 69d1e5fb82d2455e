"""One source archive from the package index that pip is set to, without building or running it.

`pip download` would run the archive's setup.py to learn its metadata; only the file is wanted here.
"""

from __future__ import annotations

import base64
import html
import http.client
import os
import re
import ssl
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

from turnout.errors import UserError

DEFAULT_INDEX = "https://pypi.org/simple"
TIMEOUT = 60  # seconds without a byte


def download(project: str, filename: str, to: Path) -> bytes:
    """The bytes of `filename`, a file of `project` (lower case) in the index.

    Raises UserError, which says where the file can be put by hand (`to`), when it cannot be had.
    """
    index = pip_setting("index-url") or DEFAULT_INDEX
    page = f"{index.rstrip('/')}/{project}/"
    certificates = pip_setting("cert")
    try:
        context = ssl.create_default_context(cafile=certificates)
        links = re.findall(r'href="([^"]+)"', _get(page, context).decode("utf-8"))
        addresses = [urllib.parse.urljoin(page, html.unescape(link)) for link in links]
        for address in addresses:
            address, _ = urllib.parse.urldefrag(address)
            if address.rsplit("/", 1)[-1] == filename:
                return _get(address, context)
        reason = f"{_public(page)} does not list it"
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = f"{_public(page)}: {getattr(error, 'reason', None) or error}"
    raise UserError(
        f"cannot download {filename}: {reason}. Check the connection, or set pip's index "
        f"(PIP_INDEX_URL), or put the file at {to} by hand"
    )


def pip_setting(name: str) -> str | None:
    """A setting of pip: from PIP_NAME in the environment, else from pip's files, else None."""
    value = os.environ.get(f"PIP_{name.upper().replace('-', '_')}")
    if value:
        return value
    # `pip config get` of older releases does not see the file that PIP_CONFIG_FILE names
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    pairs = (line.split("=", 1) for line in listed.splitlines() if "=" in line)
    found = {key: text.strip().strip("'\"") for key, text in pairs}
    return found.get(f"download.{name}") or found.get(f"global.{name}") or None


def _get(address: str, context: ssl.SSLContext) -> bytes:
    request = urllib.request.Request(_public(address))
    parts = urllib.parse.urlsplit(address)
    if parts.username is not None:  # urllib would take them for a part of the host's name
        user, word = (urllib.parse.unquote(each or "") for each in (parts.username, parts.password))
        token = base64.b64encode(f"{user}:{word}".encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
    with urllib.request.urlopen(request, timeout=TIMEOUT, context=context) as reply:
        return reply.read()


def _public(address: str) -> str:
    """The address without a user name and password, which an index URL may hold."""
    parts = urllib.parse.urlsplit(address)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[-1]))

from __future__ import annotations

import functools
import http.server
import threading

import pytest

from turnout.demo.download import download, pip_setting
from turnout.errors import UserError

NAME = "thing-1.0.tar.gz"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index on this machine, set as pip's: one project `thing` with one file."""
    (tmp_path / "simple" / "thing").mkdir(parents=True)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / NAME).write_bytes(b"content")
    link = f'<a href="../../files/{NAME}#sha256=00">{NAME}</a>'
    (tmp_path / "simple" / "thing" / "index.html").write_text(link)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_comes_from_the_index_that_pip_uses(index, tmp_path):
    assert download("thing", NAME, tmp_path / NAME) == b"content"


def test_a_file_that_the_index_lacks(index, tmp_path):
    with pytest.raises(
        UserError, match=r"does not list it.*put the file at .*other\.tar\.gz by hand"
    ):
        download("thing", "other.tar.gz", tmp_path / "other.tar.gz")
    with pytest.raises(UserError, match="cannot download"):
        download("nothing", NAME, tmp_path / NAME)


def test_offline_hides_passwords_and_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    with pytest.raises(UserError, match=r"Check the connection.*by hand") as caught:
        download("thing", NAME, tmp_path / NAME)
    assert "secret" not in str(caught.value)


def test_a_setting_of_pips_files(monkeypatch, tmp_path):
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://example.invalid/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert pip_setting("index-url") == "https://example.invalid/simple"
    assert pip_setting("no-such-setting") is None

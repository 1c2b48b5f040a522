"""The files of the page: all there, of the right types, nothing from elsewhere, nothing inline.
What they do in a browser: ``make test-page``."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient

from jakiro.serve.site import HEADERS, PAGE, TYPES

FILES = sorted(path.name for path in PAGE.iterdir())
_LINK = re.compile(r'(?:(?:src|href)=|from |import )"([^"#]+)"')


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_served_with_its_type_and_strict_headers(client: TestClient, name: str) -> None:
    found = client.get("/" if name == "index.html" else f"/page/{name}")
    assert found.status_code == 200
    assert found.headers["content-type"] == TYPES[PAGE.joinpath(name).suffix]
    assert found.headers.items() >= {(key.lower(), value) for key, value in HEADERS.items()}
    assert found.text == PAGE.joinpath(name).read_text()
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


@pytest.mark.parametrize("name", FILES)
def test_nothing_comes_from_elsewhere(client: TestClient, name: str) -> None:
    text = PAGE.joinpath(name).read_text()
    elsewhere = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", text)
    assert all(url == "http://www.w3.org/2000/svg" for url in elsewhere)
    assert not re.search(r"<style|<script>|\sstyle=|\son\w+=|innerHTML|eval\(|@import", text)
    for link in _LINK.findall(text):
        path = f"/page/{link.removeprefix('./')}" if link.startswith("./") else link
        assert client.get(path).status_code == 200, f"{name} points at {link}"


def test_what_is_not_there_is_an_error_like_any_other(client: TestClient) -> None:
    for path in ("/page/none.js", "/page/../app.py", "/page/%2e%2e/app.py"):
        assert "error" in client.get(path).json()

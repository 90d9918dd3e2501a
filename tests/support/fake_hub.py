"""A Hugging Face Hub on the loopback, for HF_ENDPOINT: repositories are folders of this machine.

It answers what `huggingface_hub`, transformers and `datasets` ask of the real one, its refusals
with the same codes and headers.
"""

import hashlib
import json
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REFUSALS = {
    "gated": (403, "GatedRepo", "Access to this is restricted. Visit its page to ask for access."),
    "gated-no-token": (401, "GatedRepo", "Access to this is restricted. You must log in."),
    "unknown": (401, "RepoNotFound", "Invalid username or password."),
    "forbidden": (403, "", "Your token may not read this."),
    "revision": (404, "RevisionNotFound", "Invalid rev id"),
    "entry": (404, "EntryNotFound", "Entry not found"),
    "busy": (429, "", "Too many requests"),
    "down": (503, "", "Service unavailable"),
}
"""Status, X-Error-Code and X-Error-Message, as the Hub gives them."""
COMMIT = hashlib.sha1(b"the only commit").hexdigest()
REVISIONS = ("main", COMMIT, "v1")

API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(.*))?"
)
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class FakeHub:
    """What the server holds; a name that is not in `folders` or `refused` is unknown."""

    folders: dict[str, Path] = field(default_factory=dict[str, Path])
    refused: dict[str, str] = field(default_factory=dict[str, str])
    """A key of REFUSALS, by a repository's name."""
    asked: list[str] = field(default_factory=list[str])
    """Every request, as `GET /path`."""
    address: str = ""

    def refusal(self, name: str, revision: str) -> str | None:
        """Why a repository, or a revision of it, is not to be had."""
        known = "revision" if name in self.folders and revision not in REVISIONS else None
        return self.refused.get(name) or (known if name in self.folders else "unknown")


@contextmanager
def serving() -> Generator[FakeHub]:
    """Run a hub; its `address` is what HF_ENDPOINT is to be."""
    hub = FakeHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if match := API.fullmatch(path):
            _, name, what, revision, under = match.groups()
            if fault := self.hub.refusal(name, revision or "main"):
                self._refuse(fault)
            else:
                self._describe(name, what, under or "")
        elif match := FILE.fullmatch(path):
            _, name, revision, file = match.groups()
            fault = self.hub.refusal(name, revision)
            place = self.hub.folders.get(name, Path()) / file
            if fault or not place.is_file():
                self._refuse(fault or "entry")
            else:
                self._file(place)
        else:
            self._refuse("entry")

    def _refuse(self, fault: str) -> None:
        status, code, message = REFUSALS[fault]
        codes = {"X-Error-Code": code} if code else {}
        self._send(status, json.dumps({"error": message}).encode(), **codes, **_error(message))

    def _describe(self, name: str, what: str | None, under: str) -> None:
        """Answer an API call: a repository's info, or the list of its files."""
        folder = self.hub.folders[name]
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        names = [file.relative_to(folder).as_posix() for file in files]
        entries = [
            {"type": "file", "path": path, "size": file.stat().st_size, "oid": _etag(file)}
            for path, file in zip(names, files, strict=True)
        ]
        if what == "tree":
            self._json([e for e in entries if str(e["path"]).startswith(under.strip("/"))])
        else:
            siblings = [{"rfilename": path} for path in names]
            facts = {"private": False, "gated": False, "disabled": False, "tags": list[str]()}
            self._json({"id": name, "sha": COMMIT, "siblings": siblings, **facts})

    def _file(self, place: Path) -> None:
        content, status = place.read_bytes(), 200
        more = {"ETag": f'"{_etag(place)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
            more["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._send(status, content, **more)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _error(message: str) -> dict[str, str]:
    return {"X-Error-Message": message}


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()

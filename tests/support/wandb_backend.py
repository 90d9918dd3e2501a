"""A W&B server on the loopback interface, for tests: what wandb 0.31 needs and nothing more.

`UpsertBucket` and `file_stream` are enough to log; `RunResumeStatus` is asked for with `resume=`,
`CreateRunFiles` receives files, tables need `Viewer` and artifacts, which are never asked for back.
Every other GraphQL operation is refused, which the client tolerates.
"""

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"
VIEWER = {
    "id": "1",
    "entity": "tester",
    "username": "tester",
    "email": "",
    "flags": "{}",
    "teams": {"edges": list[object]()},
}
KEPT_ARTIFACT = {"id": "1", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}


@dataclass
class ServedRun:
    """One W&B run as the server knows it."""

    entity: str
    project: str
    id: str
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    streams: dict[str, dict[int, str]] = field(default_factory=dict[str, dict[int, str]])
    uploads: dict[str, bytes] = field(default_factory=dict[str, bytes])
    complete: bool = False
    exit_code: int | None = None
    preempting: bool = False

    def rows(self, stream: str = HISTORY) -> list[dict[str, Any]]:
        """Decode the lines of a stream, in order."""
        return [json.loads(line) for _, line in sorted(self.streams.get(stream, {}).items())]

    @property
    def summary(self) -> dict[str, Any]:
        """The last summary that arrived."""
        return (self.rows(SUMMARY) or [{}])[-1]

    @property
    def user_config(self) -> dict[str, Any]:
        """The config less W&B's own part."""
        return {key: node["value"] for key, node in self.config.items() if key != "_wandb"}

    def receive(self, message: dict[str, Any]) -> None:
        """Take in one `file_stream` request."""
        for name, chunk in (message.get("files") or {}).items():
            stream = self.streams.setdefault(name, {})
            if name == SUMMARY:
                stream.clear()
            for index, line in enumerate(chunk["content"], chunk["offset"]):
                stream[index] = line
        self.complete = message.get("complete", self.complete)
        self.exit_code = message.get("exitcode", self.exit_code)
        self.preempting = message.get("preempting", self.preempting)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # with the usual 5, refused connections come back after 1 and 3 s

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet: a client that goes away is normal."""


@dataclass
class Backend:
    """The server; `with Backend() as backend` starts and stops it."""

    runs: dict[str, ServedRun] = field(default_factory=dict[str, ServedRun])
    requests: list[str] = field(default_factory=list[str])
    views: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Saved workspaces, by id."""
    refuse: Callable[[str], int | None] = lambda name: None  # noqa: ARG005
    """May give an HTTP status to answer a request with, by its operation or path."""
    spoil: Callable[[dict[str, Any]], object] = lambda message: None  # noqa: ARG005
    """May change what `file_stream` requests bring, before it is taken in."""
    delay_s: float = 0.0
    """How long every answer takes."""

    def client(self, home: Path) -> dict[str, str]:
        """Give the environment of a client of this server that keeps its own things in `home`."""
        names = ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DIR", "NETRC")
        here = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "k" * 40}
        return dict.fromkeys(names, str(home)) | here | {"WANDB_ERROR_REPORTING": "false"}

    def __enter__(self) -> "Backend":
        self._lock = threading.Lock()
        self.start()
        return self

    def start(self, port: int = 0) -> None:
        """Open the port, a free one by default."""
        self._server = _Server(("127.0.0.1", port), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Go away: close the port, answer nothing any more."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def come_back(self) -> None:
        """Open the port of before again."""
        self.start(int(self.url.rpartition(":")[2]))

    def answer(self, path: str, body: bytes) -> tuple[int, object]:
        """Answer one request with a status and a JSON object."""
        asked = json.loads(body) if path == "/graphql" else {}
        words = re.match(r"\s*(?:query|mutation)\s+(\w+)", asked.get("query", ""))
        name = asked.get("operationName") or (words[1] if words else path)
        with self._lock:
            self.requests.append(name)
            if status := self.refuse(name):
                return status, {"error": "refused by the test"}
            if path == "/graphql":
                return self._graphql(name, asked.get("variables") or {})
            if match := re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path):
                message = json.loads(body)
                self.spoil(message)
                self._run(*match.groups()).receive(message)
                return 200, {"exitcode": None, "limits": {}, "stopped": False}
            if match := re.fullmatch(r"/upload/([^/]+)/(.+)", path):
                self.runs[match[1]].uploads[match[2]] = body
                return 200, {}
            return 404, {}

    def _graphql(self, name: str, variables: dict[str, Any]) -> tuple[int, object]:
        operations: dict[str, Callable[[dict[str, Any]], object]] = {
            "UpsertBucket": self._upsert,
            "RunResumeStatus": self._resume_status,
            "RunRows": self._resume_status,
            "UpsertView2": self._upsert_view,
            "View": self._view,
            "CreateRunFiles": self._create_files,
            "Viewer": lambda _: {"viewer": VIEWER},
            "CreateArtifact": lambda _: {"createArtifact": {"artifact": KEPT_ARTIFACT}},
        }
        if name not in operations:
            return 200, {"data": None, "errors": [{"message": f"{name} is not served"}]}
        return 200, {"data": operations[name](variables)}

    def _run(self, entity: str | None, project: str | None, id: str) -> ServedRun:
        return self.runs.setdefault(id, ServedRun(entity or "tester", project or "none", id))

    def _upsert(self, variables: dict[str, Any]) -> object:
        inserted = variables["name"] not in self.runs
        run = self._run(variables.get("entity"), variables.get("project"), variables["name"])
        run.config = json.loads(variables.pop("config", None) or "null") or run.config
        run.fields |= {key: value for key, value in variables.items() if value is not None}
        bucket = {
            "id": run.id,
            "name": run.id,
            "displayName": run.fields.get("displayName"),
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": None,
            "historyLineCount": len(run.rows()),
            "project": {"name": run.project, **_named(run.entity)},
        }
        return {"upsertBucket": {"inserted": inserted, "bucket": bucket}}

    def _resume_status(self, variables: dict[str, Any]) -> object:
        run = self.runs.get(variables["name"])
        model = {"name": variables["project"], **_named(variables.get("entity") or "tester")}
        return {"model": {**model, "bucket": _resumable(run) if run else None}}

    def _upsert_view(self, variables: dict[str, Any]) -> object:
        id = variables.get("id") or f"view{len(self.views) + 1}"
        inserted = id not in self.views
        self.views[id] = variables
        view = {"id": id, "name": variables["name"]}
        return {"upsertView": {"view": view, "inserted": inserted}}

    def _view(self, variables: dict[str, Any]) -> object:
        name = variables["viewName"]
        views = [
            {"node": {"id": id, "displayName": view["displayName"], "spec": view["spec"]}}
            for id, view in self.views.items()
            if view["name"] == name
        ]
        return {"project": {"allViews": {"edges": views}}}

    def _create_files(self, variables: dict[str, Any]) -> object:
        id = variables["run"]
        served = [
            {"name": name, "uploadUrl": f"{self.url}/upload/{id}/{name}"}
            for name in variables["files"]
        ]
        return {"createRunFiles": {"runID": id, "uploadHeaders": [], "files": served}}


def _named(entity: str) -> dict[str, object]:
    return {"id": "1", "entity": {"id": "1", "name": entity}}


def _resumable(run: ServedRun) -> dict[str, Any]:
    """What a client must know to continue `run`; `historyTail` is a list of JSON strings."""
    return {
        "id": run.id,
        "name": run.id,
        "displayName": run.fields.get("displayName"),
        "summaryMetrics": json.dumps(run.summary),
        "historyLineCount": len(run.rows()),
        "eventsLineCount": len(run.rows("wandb-events.jsonl")),
        "logLineCount": 0,
        "historyTail": json.dumps([json.dumps(row) for row in run.rows()[-1:]]),
        "eventsTail": "[]",
        "config": json.dumps(run.config),
        "tags": run.fields.get("tags") or [],
        "notes": None,
        "wandbConfig": json.dumps({"t": 1}),
    }


def _handler(backend: Backend) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

        def do_POST(self) -> None:
            """Answer with JSON."""
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            time.sleep(backend.delay_s)
            status, answer = backend.answer(self.path, body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_PUT = do_POST

    return Handler

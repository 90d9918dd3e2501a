"""Asks a W&B server itself what it has; by W&B's key, address and GraphQL, without its client."""

import base64
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from sae_sweeps.errors import ConfigError

ANSWER_LIMIT_S = 20.0
AT_ONCE = 8
VIEWER = "query Viewer { viewer { id entity } }"
ROWS = """query RunRows($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) {
    bucket(name: $name, missingOk: true) { historyLineCount historyTail }
  }
}"""
"""W&B's own client asks in these words when it resumes a run."""

W_AND_B_RUN = tuple[str, str, str]
"""Entity, project and id."""


class Silent(Exception):
    """The server does not answer a question, or not to the point."""


@dataclass(frozen=True)
class Served:
    """What the server has of a run."""

    rows: int = 0
    tokens: int = 0
    """`tokens_seen` of the last row; 0 where it is not told."""


@final
class Server:
    """The W&B server that the environment names, and the key for it."""

    def __init__(self) -> None:
        """Find it and make sure that it accepts the key.

        Raises:
            ConfigError: if it does not, cannot be reached, or there is no key.
        """
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb
        from wandb.sdk.lib import wbauth

        settings = wandb.setup(wandb.Settings(quiet=True, show_info=False)).settings
        self.url, self.app_url = settings.base_url, settings.app_url
        try:
            auth = wbauth.authenticate_session(
                host=self.url, source="", prompt=False, update_session=False
            )
        except wandb.Error as error:
            raise ConfigError(f"W&B: {error}") from error
        if auth is None:
            how = "run `wandb login`, or set WANDB_API_KEY"
            raise ConfigError(f"W&B: there is no API key for {self.url}; {how}.")
        key = getattr(auth, "api_key", None)  # tokens of other kinds are W&B's own affair
        basic = base64.b64encode(f"api:{key}".encode()).decode()
        self._headers = {"Authorization": f"Basic {basic}"} if key else {}
        self.entity = self._greet() if key else ""
        """Whose runs are those that name nobody; empty if that is not told."""

    def rows(self, runs: Iterable[W_AND_B_RUN]) -> dict[W_AND_B_RUN, Served | None]:
        """Ask what it has of each run; None where it does not answer."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            asked = {run: pool.submit(self._rows, *run) for run in runs}
            return {run: answer.result() for run, answer in asked.items()}

    def ask(self, name: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Put one question in GraphQL, the operation `name`, and give the answer's `data`.

        Raises:
            HTTPError: for an answer with an HTTP status that tells an error.
            OSError: if the server cannot be reached.
            Silent: for any other answer.
        """
        asked = {"operationName": name, "query": query, "variables": variables}
        headers = {"Content-Type": "application/json", **self._headers}
        request = Request(f"{self.url}/graphql", json.dumps(asked).encode(), headers)
        with urlopen(request, timeout=ANSWER_LIMIT_S) as answer:
            try:
                found = json.loads(answer.read())
                if found.get("errors") or not isinstance(found["data"], dict):
                    raise Silent(found.get("errors"))
                return found["data"]
            except (ValueError, KeyError, AttributeError) as error:
                raise Silent(error) from error

    def _greet(self) -> str:
        try:
            known = self.ask("Viewer", VIEWER, {}).get("viewer")
        except HTTPError as error:
            error.close()
            if error.code >= 500:
                raise ConfigError(f"W&B: {self.url} answers {error.code}; try later.") from error
            known = None if error.code in (401, 403) else {}
        except Silent:
            known = {}
        except OSError as error:
            why = getattr(error, "reason", error)
            raise ConfigError(
                f"W&B: {self.url} cannot be reached ({why}); try where there is a connection."
            ) from error
        if known is None:
            how = "run `wandb login --relogin`, or set WANDB_API_KEY"
            raise ConfigError(f"W&B: {self.url} refuses the API key; {how}.")
        return known.get("entity") or ""

    def _rows(self, entity: str, project: str, id: str) -> Served | None:
        where = {"project": project, "entity": entity or None, "name": id}
        try:
            found = (self.ask("RunRows", ROWS, where)["model"] or {}).get("bucket") or {}
            tail = [json.loads(row) for row in json.loads(found.get("historyTail") or "[]")]
            last = tail[-1] if tail else {}
            return Served(int(found.get("historyLineCount", 0)), int(last.get("tokens_seen", 0)))
        except (OSError, Silent, ValueError, TypeError, KeyError, AttributeError):
            return None

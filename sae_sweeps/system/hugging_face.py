"""The Hugging Face Hub: where its files lie here, whether it answers, what it refuses; no torch."""

import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from sae_sweeps.errors import one_line

LIMIT_S = 2.0
"""For the hub to answer before anything starts."""
NAME = r"\w[\w.-]{0,95}(/[\w.-]{1,96})?"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TOKENIZERS = r"token|vocab|merges|spiece|tekken|\.model$|\.tiktoken$"
"""In the name of some file of every tokenizer."""
LOG_IN = "run `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class Repository:
    """A model or data set of the hub, as an option names it."""

    key: Literal["target_model.model", "data.dataset"]
    given: str
    revision: str | None
    alias: str | None = None
    """Its name on the hub, where that is another."""

    @property
    def name(self) -> str:
        return self.alias or self.given

    @property
    def is_model(self) -> bool:
        return self.key == "target_model.model"

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{'' if self.is_model else 'datasets/'}{self.name}"

    @property
    def what(self) -> str:
        """How a complaint begins."""
        return f"{self.key} is {self.given!r}: "


def is_name(text: str) -> bool:
    """Whether a text may be a repository's name, and is not a path."""
    return re.fullmatch(NAME, text) is not None


# --- The cache -----------------------------------------------------------------------------


def cache_folder() -> Path:
    """Give the folder that holds repositories; HF_HUB_CACHE and HF_HOME rule it."""
    own = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or Path(own) / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def snapshot(model: str, revision: str | None) -> Path | None:
    """Find the folder in the cache with a revision of a model; at least its config.json is there.

    TransformerLens knows short names, so `gpt2` may lie there as `openai-community/gpt2`.
    """
    if not is_name(model):
        return None
    patterns = [f"models--{model.replace('/', '--')}"]
    patterns += [] if "/" in model else [f"models--*--{model}"]
    places = (place for pattern in patterns for place in sorted(cache_folder().glob(pattern)))
    found = (place / "snapshots" / (commit_of(place, revision) or "none") for place in places)
    return next((folder for folder in found if (folder / "config.json").is_file()), None)


def commit_of(place: Path, revision: str | None) -> str | None:
    """Read from a repository's folder in the cache which commit a revision is."""
    try:
        return (place / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision is not None and re.fullmatch("[0-9a-f]{40}", revision)
        return revision if commit else None


def without_weights(folder: Path) -> str:
    """Say which weights a model's folder does not hold; an empty text where it holds them all."""
    names = {file.name for file in folder.glob("*") if file.is_file()}
    found = {name for name in names if re.fullmatch(r".+\.safetensors|pytorch_model.*\.bin", name)}
    indices = [_parts(folder / name) for name in sorted(names) if name.endswith(".index.json")]
    if "adapter_config.json" in names or found.difference(*indices):
        return ""
    lacking = [min(parts - found, default="") for parts in indices]
    return "" if "" in lacking else next(iter(lacking), "model.safetensors")


def _parts(index: Path) -> set[str]:
    """The files that an index of weights names."""
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()  # the loader will say more


def has_tokenizer(folder: Path) -> bool:
    """Whether a model's folder may hold a tokenizer."""
    return any(re.search(TOKENIZERS, file.name) for file in folder.glob("*"))


# --- Whether it answers --------------------------------------------------------------------


def silence() -> str:
    """Say why nothing can be had from the hub; an empty text where something may be."""
    for name in OFFLINE:
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            return f"{name} is set"
    return "" if _answers() else f"{urlsplit(_address()).hostname} does not answer"


def settle() -> None:
    """Let Hugging Face's libraries do without the hub where it is silent: they retry for minutes.

    For the rest of this process; what their caches hold can then be had at once.
    """
    if not silence():
        return
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:  # which copies the setting when it is imported
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


@contextmanager
def offline() -> Generator[None]:
    """Within it Hugging Face's libraries take what their caches hold, and fetch nothing."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _address() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


@cache
def _answers() -> bool:
    """Try to connect to the hub, or to the proxy in between, for a limited time."""
    address = urlsplit(_address())
    proxy = getproxies().get(address.scheme)
    if proxy:
        address = urlsplit(proxy if "://" in proxy else f"//{proxy}")
    port = address.port or (80 if address.scheme == "http" else 443)

    def connect() -> bool:
        socket.create_connection((address.hostname, port), timeout=LIMIT_S).close()
        return True

    return isinstance(_soon(connect), bool)


def _soon(task: Callable[[], Any]) -> Any:
    """Do a task for a limited time: its result, what it raised, or None.

    In a thread, since looking up a host's name knows no time limit.
    """
    ended: list[Any] = []

    def work() -> None:
        try:
            ended.append(task())
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    return next(iter(ended), None)


# --- What it refuses -----------------------------------------------------------------------


@cache
def refusal(repository: Repository) -> str:
    """Ask the hub for a file and say in one line why it may not be had, if so.

    Empty too where the hub is slow or overloaded: what may pass is left to loading, which retries.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    # Nearly every data set has this file; unlike README.md, it is behind the gate.
    file, kind = ("config.json", "model") if repository.is_model else (".gitattributes", "dataset")
    where = {"repo_type": kind, "revision": repository.revision, "endpoint": _address()}
    url = hf_hub_url(repository.name, file, **where)
    # Which of two equal limits ends first is chance: the one here must.
    error = _soon(lambda: get_hf_file_metadata(url, timeout=10 * LIMIT_S))
    if isinstance(error, errors.EntryNotFoundError) and not repository.is_model:
        return ""
    passing = isinstance(error, errors.HfHubHTTPError) and _status(error) not in (401, 403, 404)
    return worded(error, repository) if isinstance(error, Exception) and not passing else ""


@cache
def model_config(repository: Repository) -> Any:
    """Ask the hub for a model's config.json, and keep no file; {} where it is not to be had."""
    if silence():
        return {}
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session

    name, revision = repository.name, repository.revision

    def get() -> Any:
        url = hf_hub_url(name, "config.json", revision=revision, endpoint=_address())
        # Without its limit a hub that never ends would keep the thread.
        session, longest = get_session(), 10 * LIMIT_S
        found = session.get(url, headers=build_hf_headers(), timeout=longest, follow_redirects=True)
        return found.raise_for_status().json()

    found = _soon(get)
    return found if isinstance(found, dict) else {}


def worded(error: BaseException, repository: Repository) -> str:
    """Say in one line what the hub had against a repository; empty if nothing in an error's chain.

    Transformers and `datasets` wrap the hub's errors, and those of the network, in their own.
    """
    from huggingface_hub import errors as e

    about, page = repository.what, repository.page
    noun = "model" if repository.is_model else "data set"
    revision = f"{repository.key.partition('.')[0]}.revision is {repository.revision!r}: "
    lines: tuple[tuple[type[BaseException], str], ...] = (
        (e.GatedRepoError, f"{about}it is gated. Accept its terms on {page}, then {LOG_IN}."),
        (
            e.RevisionNotFoundError,
            f"{revision}{repository.given!r} has no such branch, tag or commit; see {page}.",
        ),
        (
            e.RepositoryNotFoundError,
            f"{about}there is no such {noun} on the hub, unless it is private; for one that you "
            f"may read, {LOG_IN}.",
        ),
        (
            e.RemoteEntryNotFoundError,
            f"{about}a file is missing there that a {noun} needs; see {page}.",
        ),
    )
    chain = list(_chain(error))
    for kind, line in lines:
        if any(isinstance(link, kind) for link in chain):
            return line
    refused = [link for link in chain if isinstance(link, e.HfHubHTTPError)]
    if refused:
        return about + _of_status(_status(refused[0]))
    cut_off = (e.LocalEntryNotFoundError, e.OfflineModeIsEnabled, ConnectionError, TimeoutError)
    if any(isinstance(link, cut_off) or _of_network(link) for link in chain):
        why = silence() or f"the hub broke off ({one_line(chain[-1])[:120]}); try again"
        return f"{about}it is not, or only in part, in the Hugging Face cache, and {why}."
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Walk from an error to what caused it, whether or not it says so."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: Any) -> int:
    return int(error.response.status_code)


def _of_status(status: int) -> str:
    match status:
        case 401:
            return f"the hub does not accept your token (401); {LOG_IN} anew."
        case 403:
            return f"the hub forbids it (403); {LOG_IN}, of an account that may read it."
        case 404:
            return f"{urlsplit(_address()).hostname} does not know it (404)."
        case 429:
            return f"the hub had too many requests (429); wait, or {LOG_IN} for a higher limit."
        case _:
            return f"the hub failed ({status}); try again later."


def _of_network(error: BaseException) -> bool:
    """Whether an HTTP library says that a connection failed; there are several in use."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "ClientConnectionError"})

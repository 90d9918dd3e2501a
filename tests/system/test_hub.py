"""The Hugging Face Hub: what it refuses, what it has in its cache, and that it may be silent."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

from sae_sweeps.data import documents
from sae_sweeps.embedded import MODEL
from sae_sweeps.errors import ConfigError
from sae_sweeps.system import hugging_face
from sae_sweeps.target_model.judging import contexts_fit, models_and_hooks_exist
from tests.support.commands import Trainer, refusal, run, trainer, write
from tests.support.fake_hub import COMMIT, FakeHub, serving

__all__ = ["run", "trainer"]  # fixtures

from tests.support.places import ROOT

LENS = ["target_model=transformer_lens", "target_model.hook=blocks.1.hook_resid_post"]
C4 = ["data=c4", "data.config=null"]


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, trainer: Trainer) -> Iterator[FakeHub]:
    """A hub on the loopback, which the command and the libraries of this process ask."""
    del trainer
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for function in (hugging_face._answers, hugging_face.refusal):  # pyright: ignore[reportPrivateUsage]
        function.cache_clear()  # pyright: ignore[reportFunctionMemberAccess]
    with serving() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.address)
        yield fake


def test_a_model_s_config_is_had_without_a_file_or_not_at_all(online: FakeHub) -> None:
    """Some names the hub's own library refuses; nothing of what is not to be had is raised."""

    def asked(name: str) -> Any:
        return hugging_face.model_config(hugging_face.Repository("target_model.model", name, None))

    hugging_face.model_config.cache_clear()  # pyright: ignore[reportFunctionMemberAccess]
    online.folders["some/model"] = MODEL
    assert asked("some/model")["model_type"] == "gpt2"
    assert [asked(name) for name in ("foo--bar", "a..b", "x.git", "some/unknown")] == [{}] * 4
    assert not Path(os.environ["HF_HOME"]).exists()


# --- Before anything starts ----------------------------------------------------------------

LOG_IN = "run `hf auth login` or set HF_TOKEN"

BAD: dict[str, list[str]] = {
    f"target_model.model is 'some/gated': it is gated. Accept its terms on "
    f"https://huggingface.co/some/gated, then {LOG_IN}.": [*LENS, "target_model.model=some/gated"],
    "Accept its terms on https://huggingface.co/some/gated-no-token, then": [
        *(*LENS, "target_model.model=some/gated-no-token")
    ],
    "target_model.model is 'some/unknown': there is no such model on the hub, unless it is": [
        *(*LENS, "target_model.model=some/unknown")
    ],
    f"target_model.model is 'some/forbidden': the hub forbids it (403); {LOG_IN}": [
        *(*LENS, "target_model.model=some/forbidden")
    ],
    "target_model.revision is 'v2': 'some/model' has no such branch, tag or commit; see https": [
        *(*LENS, "target_model.model=some/model", "target_model.revision=v2")
    ],
    "target_model.model is 'some/data': a file is missing there that a model needs": [
        *(*LENS, "target_model.model=some/data")
    ],
    "data.dataset is 'some/gated': it is gated. Accept its terms on "
    f"https://huggingface.co/datasets/some/gated, then {LOG_IN}.": [*C4, "data.dataset=some/gated"],
    "data.dataset is 'some/unknown': there is no such data set on the hub, unless it is private": [
        *(*C4, "data.dataset=some/unknown")
    ],
    "data.revision is 'v2': 'some/data' has no such branch, tag or commit": [
        *(*C4, "data.dataset=some/data", "data.revision=v2")
    ],
}


@pytest.mark.parametrize("expected", BAD)
def test_what_the_hub_refuses_is_refused_before_anything_starts(
    expected: str,
    run: Callable[..., int],
    online: FakeHub,
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    online.folders |= {"some/model": MODEL, "some/data": tmp_path}
    for fault in ("gated", "gated-no-token", "forbidden"):
        online.refused[f"some/{fault}"] = fault
    assert run(*BAD[expected], "k=4,8") == 1
    assert expected in refusal(capsys, tmp_path)
    assert trainer.runs == []
    heads = [line for line in online.asked if line.startswith("HEAD")]
    assert len(heads) == 1  # for all points of a sweep


@pytest.mark.parametrize("fault", ["busy", "down", None])
def test_what_the_hub_gives_or_may_soon_give_is_left_to_loading(
    run: Callable[..., int], online: FakeHub, trainer: Trainer, tmp_path: Path, fault: str | None
) -> None:
    online.folders |= {"some/model": MODEL, "some/data": tmp_path}
    online.refused |= {name: fault for name in online.folders if fault}
    words = ["target_model.model=some/model", "target_model.revision=v1"]
    assert run(*LENS, *words, *C4, "data.dataset=some/data", "data.revision=main") == 0
    assert len(trainer.runs) == 1 and len(online.asked) >= 2
    # TransformerLens has short names that the hub does not know.
    assert run(*LENS, "target_model.model=pythia-70m") == 0


def test_a_hub_that_connects_and_says_nothing_does_not_hold_a_command_up(
    run: Callable[..., int], online: FakeHub, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{mute.getsockname()[1]}")
        start = time.monotonic()
        assert run(*LENS, "target_model.model=some/model") == 0
        assert time.monotonic() - start < 20 and len(trainer.runs) == 1
    assert online.asked == []


# --- The cache, and a hub that is silent ---------------------------------------------------


def cached(home: Path, files: dict[str, str], revision: str = "main", commit: str = "1") -> Path:
    """Lay files down as `huggingface_hub` does: a snapshot of links, and what a revision is."""
    repository = home / "hub" / "models--some--model"
    for name, content in files.items():
        blob = repository / "blobs" / f"{commit}{name}"
        write(blob, content)
        link = repository / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    write(repository / "refs" / revision, commit)
    return repository


CONFIG = {"config.json": json.dumps({"num_hidden_layers": 2})}
TOKENIZER = {"tokenizer.json": "{}"}
SHARDS = {"a.safetensors", "b.safetensors"}
INDEX = {
    "model.safetensors.index.json": json.dumps({"weight_map": {name: name for name in SHARDS}})
}
WEIGHTS = {"model.safetensors": ""}
WHOLE = CONFIG | TOKENIZER | WEIGHTS


def complaints(home: Path, monkeypatch: pytest.MonkeyPatch, **changed: object) -> list[str]:
    """What the rules have against the model in a cache that the hub is not asked about."""
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    node = {"model": "some/model", "hook": "blocks.1.hook_resid_pre", "revision": None} | changed
    config = {"target_model": node, "data": {"context_tokens": 128}}
    return [*models_and_hooks_exist(config), *contexts_fit(config)]


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (WHOLE, None),
        (CONFIG | TOKENIZER | {"pytorch_model.bin": ""}, None),
        (CONFIG | TOKENIZER | INDEX | dict.fromkeys(SHARDS, ""), None),
        (CONFIG | {"spiece.model": ""} | WEIGHTS, None),
        (CONFIG, "only in part in"),
        (CONFIG | TOKENIZER | {"training_args.bin": ""}, "only in part in"),
        (CONFIG | TOKENIZER | INDEX | {"a.safetensors": ""}, "only in part in"),
        (CONFIG | WEIGHTS, "only in part in"),
        (TOKENIZER | WEIGHTS, "neither a folder nor in"),
    ],
)
def test_a_model_that_is_only_partly_in_the_cache_needs_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], complaint: str | None
) -> None:
    cached(tmp_path, files)
    found = complaints(tmp_path, monkeypatch)
    end = f"'some/model': {complaint} the Hugging Face cache, and HF_HUB_OFFLINE is set."
    assert len(found) == 1 and found[0].endswith(end) if complaint else found == []


def test_a_download_that_was_broken_off_is_a_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blob = cached(tmp_path, WHOLE) / "blobs" / "1model.safetensors"
    blob.rename(blob.with_name("1model.safetensors.incomplete"))
    assert "only in part" in complaints(tmp_path, monkeypatch)[0]


def test_a_short_name_is_found_under_its_owners(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cached(tmp_path, WHOLE)
    assert complaints(tmp_path, monkeypatch, model="model") == []
    assert complaints(tmp_path, monkeypatch, model="odel") != []


def test_a_revision_is_judged_by_its_own_config(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = {"main": ("a" * 40, 4, 512), "v1": ("b" * 40, 1, 512), "refs/pr/1": ("c" * 40, 4, 64)}
    for revision, (commit, layers, longest) in sizes.items():
        # As Gemma 3 has it: the language part of several.
        part = {"num_hidden_layers": layers, "max_position_embeddings": longest}
        own = {"config.json": json.dumps({"text_config": part, "num_hidden_layers": 99})}
        cached(tmp_path, WHOLE | own, revision, commit)

    def of(revision: str | None) -> list[str]:
        hook = "blocks.3.hook_resid_pre"
        return complaints(tmp_path, monkeypatch, revision=revision, hook=hook)

    assert of(None) == of("main") == of("a" * 40) == []
    for revision in ("v1", "b" * 40):
        [line] = of(revision)
        assert line.endswith("expected blocks.0 to blocks.0 for 'some/model'.")
    [line] = of("refs/pr/1")
    assert line == "data.context_tokens is 128, but the model reads at most 64."
    for unknown in ("other", "d" * 40, "../main", "a" * 300, "\0", "*", "v"):
        [line] = of(unknown)
        assert f"neither a folder nor in the Hugging Face cache at revision {unknown!r}" in line


def test_configs_that_are_no_configs_are_left_to_loading(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for index, text in enumerate(("[]", "3", "{", '{"text_config": 3, "n_layer": "x"}', "null")):
        cached(tmp_path / str(index), WHOLE | {"config.json": text})
        assert complaints(tmp_path / str(index), monkeypatch) == []


@pytest.mark.slow
@pytest.mark.usefixtures("online")
def test_a_silent_hub_is_told_from_one_within_seconds(
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    cached(tmp_path / "home", CONFIG)
    (tmp_path / f"datasets/some___other/default/0.0.0/{COMMIT}").mkdir(parents=True)
    write(tmp_path / "home/hub/datasets--some--other/refs/v1", COMMIT)
    silent = ", and 127.0.0.1 does not answer."
    for words, what in (
        ([*LENS, "target_model.model=some/model"], "only in part in the Hugging Face cache"),
        ([*C4, "data.dataset=some/data"], "neither a folder nor packed before"),
        (
            [*C4, "data.dataset=some/other", "data.revision=v2"],
            "neither a folder nor packed before at revision 'v2'",
        ),
    ):
        start = time.monotonic()
        assert run(*words) == 1
        assert what + silent in refusal(capsys, tmp_path)
        assert time.monotonic() - start < 20
    assert run(*C4, "data.dataset=some/other", "data.revision=v1") == 0
    assert run(*C4, "data.dataset=some/other") == 0


@pytest.mark.usefixtures("online")
def test_the_libraries_stay_offline_only_where_the_hub_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    hugging_face.settle()
    assert not constants.is_offline_mode() and not datasets.config.HF_HUB_OFFLINE
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    hugging_face.settle()
    assert constants.is_offline_mode() and datasets.config.HF_HUB_OFFLINE


# --- How an error is worded ----------------------------------------------------------------


def raised(online: FakeHub, name: str, file: str = "config.json") -> Exception:
    """What `huggingface_hub` raises about a file, wrapped twice as transformers may wrap it."""
    url = hf_hub_url(name, file, endpoint=online.address)
    with pytest.raises(Exception) as of_hub:
        get_hf_file_metadata(url)
    try:
        try:
            raise of_hub.value
        except Exception as inner:
            raise OSError("We couldn't connect") from inner
    except OSError:
        try:
            raise RuntimeError("it did not work") from None
        except RuntimeError as outer:
            return outer


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("gated", "it is gated. Accept its terms on https://huggingface.co/some/model, then run"),
        ("unknown", "there is no such model on the hub"),
        ("revision", "target_model.revision is 'v1': 'some/model' has no such branch"),
        ("forbidden", "the hub forbids it (403)"),
        ("busy", "the hub had too many requests (429)"),
        ("down", "the hub failed (503); try again later."),
        ("entry", "a file is missing there that a model needs"),
    ],
)
def test_the_hubs_word_is_found_in_what_wraps_it(
    online: FakeHub, fault: str, expected: str
) -> None:
    online.folders["some/model"] = MODEL
    online.refused["some/model"] = fault
    repository = hugging_face.Repository("target_model.model", "some/model", "v1")
    line = hugging_face.worded(raised(online, "some/model"), repository)
    assert expected in line and "\n" not in line and len(line) < 300
    assert line.startswith(("target_model.model is 'some/model': ", "target_model.revision is"))
    assert hugging_face.worded(ValueError("the weights are damaged"), repository) == ""


class TransportError(Exception):
    """What an HTTP library raises where a host has no address."""


def test_a_network_that_breaks_off_is_told(
    online: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hugging_face.Repository("data.dataset", "some/data", None)
    for error in (ConnectionResetError("reset"), TimeoutError(), TransportError("no host")):
        line = hugging_face.worded(error, repository)
        assert f"and the hub broke off ({error}); try again." in line
    url = hf_hub_url("some/data", "x", endpoint="http://127.0.0.1:9")
    with pytest.raises(Exception) as refused:
        get_hf_file_metadata(url)
    assert "the hub broke off (" in hugging_face.worded(refused.value, repository)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = hugging_face.worded(raised(online, "some/data"), repository)
    assert line.endswith("in the Hugging Face cache, and HF_HUB_OFFLINE is set.")


@pytest.mark.parametrize("gated", [True, False])
def test_what_datasets_leaves_out_of_an_error_is_asked_for(
    online: FakeHub, monkeypatch: pytest.MonkeyPatch, gated: bool
) -> None:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    def refuse(*_: object, **__: object) -> NoReturn:
        raise DatasetNotFoundError("it does not exist or cannot be accessed")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    online.folders["some/data"] = MODEL
    online.refused |= {"some/data": "gated"} if gated else {}
    node = {"dataset": "some/data", "config": None, "split": "train", "revision": None}
    with pytest.raises(ConfigError) as refused:
        list(documents.of_data_set(node | {"column": "text", "streaming": True}))
    line = str(refused.value)
    assert line.startswith("data.dataset is 'some/data': it ") and "\n" not in line
    page = "Accept its terms on https://huggingface.co/datasets/some/data, then run"
    assert (page if gated else "it cannot be read (it does not exist") in line


# --- By name, end to end -------------------------------------------------------------------

SMALL = [
    *("k=4", "d_sae=64", "device=cpu", "tracking=off", "hydra.launcher.progress=off", "name=one"),
    *("stream.batch_tokens=256", "stream.chunk_tokens=1024", "stream.calibration_tokens=1024"),
    *("evaluation.tokens=1024", "evaluation.ce_tokens=256", "training.tokens=1024"),
    *("training.dead_window_tokens=512", "target_model.dtype=float32"),
]


def sweep(place: Path, address: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with a Hugging Face home beside it."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("HF_")}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(place.parent / "home")}
    environment |= {"HF_ENDPOINT": address, "XDG_CACHE_HOME": str(place / "cache")}
    place.mkdir()
    line = [sys.executable, "-m", "sae_sweeps", *SMALL, *words]
    return subprocess.run(
        line, cwd=place, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def figures(place: Path) -> dict[str, float]:
    [path] = place.glob("outputs/one/runs/*/result.json")
    return json.loads(path.read_text())["metrics"]


@pytest.mark.slow
def test_a_model_and_a_data_set_by_name(tmp_path: Path) -> None:
    """They are downloaded; then the same run needs no hub, and does not wait for one."""
    data = tmp_path / "data"
    data.mkdir()
    texts = [json.dumps({"text": f"def f{i}(x):\n    return {i} * x\n" * 20}) for i in range(400)]
    (data / "train.jsonl").write_text("\n".join(texts))
    words = [*LENS, *C4, "data.dataset=some/data", "target_model.model=some/model"]
    words += ["target_model.revision=v1", "data.held_out_share=0.3", "data.train_tokens=4000"]
    words += ["data.held_out_tokens=1100"]
    places = [tmp_path / name for name in ("streamed", "downloaded", "offline")]
    with serving() as fake:
        fake.folders |= {"some/model": MODEL, "some/data": data}
        for place, streaming in zip(places, ("true", "false"), strict=False):
            done = sweep(place, fake.address, *words, f"data.streaming={streaming}")
            assert done.returncode == 0, done.stderr
        assert fake.asked.count(f"GET /some/model/resolve/{COMMIT}/model.safetensors") == 1
    start = time.monotonic()
    done = sweep(places[2], "http://127.0.0.1:9", *words)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 60 and "Retrying" not in done.stderr
    assert "packs tokens" in done.stderr
    assert figures(places[0]) == figures(places[1]) == figures(places[2])


@pytest.mark.slow
def test_a_model_without_a_tokenizer_by_name(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    with serving() as fake:
        fake.folders["some/model"] = tmp_path / "model"
        done = sweep(tmp_path / "place", fake.address, *LENS, "target_model.model=some/model")
    assert done.returncode == 1
    assert "target_model.model is 'some/model': it has no tokenizer: save" in done.stderr
    assert len(done.stderr.splitlines()) == 1

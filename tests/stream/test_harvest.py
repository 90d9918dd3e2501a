"""The harvest: streams at several hooks from one pass are those that each hook has alone."""

import gc
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.signature import build
from sae_sweeps.errors import ConfigError
from sae_sweeps.interfaces import Data, Splice, SplicedLosses, Split, TargetModel
from sae_sweeps.record.identity import identity, pass_identity, stream_identity
from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from sae_sweeps.stream import harvest as harvest_module
from sae_sweeps.stream.harvest import Chunks, Harvest
from sae_sweeps.stream.live import Stream
from sae_sweeps.stream.order import permutation
from sae_sweeps.target_model import transformer_lens
from sae_sweeps.target_model.passes import Bridged, Plain
from sae_sweeps.target_model.transformer_lens import TransformerLens
from sae_sweeps.tracking.off import Off
from sae_sweeps.training import pack
from sae_sweeps.training.member import Member
from sae_sweeps.training.pack import load
from tests.support.families import CPU, LAYERS, Drawn, save
from tests.support.interrupting import OFTEN, Interrupted, Interrupting
from tests.support.runs import assert_equal_runs
from tests.support.small import Quiet, measure, small_run, train, train_pack
from tests.support.streams import Alone

POST = [f"blocks.{layer}.hook_resid_post" for layer in range(LAYERS)]
WIDE = "blocks.1.mlp.hook_post"
BRIDGED = "blocks.0.ln1.hook_normalized"
CONTEXT, TOKENS = 24, 256
"""A row's tokens, and those evaluated."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def base() -> RunConfig:
    """The config of a small run."""
    return small_run(Path("unused"), "stream.chunk_tokens=512", "stream.seed=3").config


Node = dict[str, Any]


def config_of(base: RunConfig, node: Node, **stream: Any) -> RunConfig:
    """The same for another target model, on drawn tokens."""
    drawn = f"{Drawn.__module__}.{Drawn.__qualname__}"
    data = {"_target_": drawn, "context": CONTEXT, "train": 200, "held_out": 30}
    evaluation = replace(base.evaluation, tokens=TOKENS, ce_tokens=0)
    given = replace(base.stream, **{"calibration_tokens": 300, "repeat": True} | stream)
    nodes = base.nodes | {"target_model": node, "data": data}
    return replace(base, nodes=nodes, stream=given, evaluation=evaluation)


def model(folder: Path, hook: str, **changed: Any) -> Node:
    """A target model's options."""
    return {
        "_target_": f"{TransformerLens.__module__}.TransformerLens",
        "model": str(folder),
        "hook": hook,
        "revision": None,
        "dtype": "float32",
        "compatibility_mode": False,
        "rows_per_forward": 8,
    } | changed


class Own(TargetModel):
    """A user's target model: it has a hook, but no pass that several could share."""

    has_loss = False
    made: ClassVar[list["Own"]] = []

    def __init__(self, data: Data, device: torch.device, *, hook: str) -> None:
        self.device, self.hook, self.description = device, hook, {}
        self.d_in, self.tokens_per_row = 6, CONTEXT - 1
        self.rows = {split: data.rows(split, Tokenizer()) for split in ("train", "held_out")}
        Own.made.append(self)

    def row_count(self, split: Split) -> int:
        return self.rows[split].shape[0]

    def activations(self, split: Split, rows: Int[Tensor, " rows"]) -> Float[Tensor, "tokens d_in"]:
        """Noise that token, position and hook define; `later` spoils the last row of all."""
        angles = self.rows[split][rows][:, 1:].flatten()[:, None] * torch.arange(1, 7)
        acts = torch.sin(angles.float() + len(self.hook))
        if self.hook == "always":
            acts = acts / 0
        if self.hook == "later" and split == "train":
            acts.view(len(rows), CONTEXT - 1, 6)[rows == LATE, 3, 2] = torch.nan
        return acts

    def spliced_losses(
        self, split: Split, rows: Int[Tensor, " rows"], splice: Splice
    ) -> SplicedLosses:
        raise AssertionError(f"it has no loss: {split}, {rows}, {splice}")


class Tokenizer:
    """One that says which token is first."""

    bos_token_id = 1
    eos_token_id = None


LATE = int(permutation(200, 0, 0, 0)[100])
"""A row that streams come to after calibration."""


def own(hook: str) -> Node:
    """A user's target model's options."""
    return {"_target_": f"{__name__}.Own", "hook": hook}


def alone(config: RunConfig) -> Alone:
    """The stream of a config without a harvest."""
    target = build(config.nodes["target_model"], build(config.nodes["data"]), CPU)
    return Alone(target, config.stream, TOKENS)


def assert_same_streams(configs: Sequence[RunConfig], harvest: Harvest, pool: Any) -> None:
    """Scale, mean, held-out tokens and chunks, bit for bit; also across an epoch's end."""
    streams = [harvest.stream(config) for config in configs]
    expected = [alone(config) for config in configs]
    for stream, other in zip(streams, expected, strict=True):
        assert stream.scale == other.scale
        assert stream.mean.equal(other.mean) and stream.offset.equal(other.offset)
        assert stream.held_out.equal(other.held_out)
        assert stream.target.description == other.target.description
    for index in (0, 8, 3):
        chunks = harvest.begin(index, streams, pool)
        chunks.wait()
        for stream, other in zip(streams, expected, strict=True):
            assert chunks.take(stream).equal(other.chunk(index))


# --- The same streams ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threads", "rows_per_forward"),
    [
        *((1, 8), (2, 1), (4, 8), (2, 1000)),
        *(pytest.param(*given, marks=pytest.mark.slow) for given in ((2, 8), (4, 1), (1, 3))),
    ],
)
def test_streams_are_those_of_each_hook_alone(
    threads: int, rows_per_forward: int, base: RunConfig, folder: Path
) -> None:
    hooks = [POST[1], POST[0], WIDE, POST[2]]
    configs = [
        config_of(base, model(folder, hook, rows_per_forward=rows_per_forward)) for hook in hooks
    ]
    with ThreadPoolExecutor(threads) as pool:
        harvest = Harvest(configs, CPU, pool)
        assert len(harvest.groups) == 1
        widths = [harvest.stream(config).target.d_in for config in configs]
        assert widths == [32, 32, 48, 32]
        assert_same_streams(configs, harvest, pool)


@pytest.mark.parametrize("given", [{"centre": False}, {"skip_first": 2, "max_norm": 1.2}])
def test_streams_may_be_as_they_come_or_leave_tokens_out(
    given: dict[str, Any], base: RunConfig, folder: Path
) -> None:
    configs = [config_of(base, model(folder, hook), **given) for hook in POST[:2]]
    with ThreadPoolExecutor(2) as pool:
        assert_same_streams(configs, Harvest(configs, CPU, pool), pool)


@pytest.mark.parametrize("order", [1, -1])
def test_plain_and_bridged_hooks_may_be_mixed(order: int, base: RunConfig, folder: Path) -> None:
    hooks = [POST[1], BRIDGED, POST[0]][::order]
    configs = [config_of(base, model(folder, hook)) for hook in hooks]
    with ThreadPoolExecutor(2) as pool:
        harvest = Harvest(configs, CPU, pool)
        found = [[target.hook for target in group] for group in harvest.groups]
        assert sorted(map(len, found)) == [1, 2]
        assert [BRIDGED] in found
        assert_same_streams(configs, harvest, pool)


def test_two_names_of_one_place(base: RunConfig, folder: Path) -> None:
    hooks = ["blocks.0.hook_out", POST[0], "blocks.1.hook_resid_pre"]
    configs = [config_of(base, model(folder, hook)) for hook in hooks]
    with ThreadPoolExecutor(2) as pool:
        harvest = Harvest(configs, CPU, pool)
        assert_same_streams(configs, harvest, pool)
        streams = [harvest.stream(config) for config in configs]
        assert len(harvest.groups) == 1 and len({*map(id, streams)}) == 3
        assert streams[0].held_out.equal(streams[2].held_out)


def test_without_a_pass_to_share_each_hook_has_its_own_target(base: RunConfig) -> None:
    configs = [config_of(base, own(hook)) for hook in ("a", "bb", "ccc")]
    Own.made.clear()
    with ThreadPoolExecutor(2) as pool:
        harvest = Harvest([*configs, configs[1]], CPU, pool)
        assert [made.hook for made in Own.made] == ["a", "bb", "ccc"]
        assert [[target.hook for target in group] for group in harvest.groups] == [
            ["a"],
            ["bb"],
            ["ccc"],
        ]
        assert_same_streams(configs, harvest, pool)


# --- Work that is not done twice, or at all ------------------------------------------------


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every forward pass, probes of a hook's width left out."""
    counted: list[int] = []
    for way in (Plain, Bridged):
        count_passes(way, counted, monkeypatch)
    return counted


def count_passes(way: type, counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    run = way.logits

    def logits(self: Any, tokens: Any, visit: Any) -> Any:
        if tokens.shape[1] > transformer_lens.MIN_CONTEXT:
            counted.append(len(tokens))
        return run(self, tokens, visit)

    monkeypatch.setattr(way, "logits", logits)


def test_many_hooks_take_as_many_passes_as_one(
    base: RunConfig, folder: Path, passes: list[int]
) -> None:
    taken: list[list[int]] = []
    for hooks in (POST[:1], [POST[1], WIDE, *POST[::2], "blocks.2.hook_attn_out"]):
        configs = [config_of(base, model(folder, hook)) for hook in hooks]
        passes.clear()
        with ThreadPoolExecutor(1) as pool:
            harvest = Harvest(configs, CPU, pool)
            harvest.begin(1, [harvest.stream(config) for config in configs], pool).wait()
        taken.append(passes.copy())
    assert taken[0] == taken[1]
    needed = [-(-300 // 23), -(-TOKENS // 23), -(-1024 // 23) - 512 // 23]
    assert taken[0] == [part for rows in needed for part in split(rows, 8)]


def split(rows: int, at_most: int) -> list[int]:
    return [at_most] * (rows // at_most) + [rows % at_most] * (rows % at_most > 0)


def test_a_pass_ends_at_the_deepest_hook_that_is_needed(base: RunConfig, folder: Path) -> None:
    configs = [config_of(base, model(folder, hook)) for hook in (POST[1], POST[0], BRIDGED)]
    ran: list[tuple[type, int]] = []
    with ThreadPoolExecutor(1) as pool:
        harvest = Harvest(configs, CPU, pool)
        streams = [harvest.stream(config) for config in configs]
        for stream in streams[1:]:
            assert isinstance(stream.target, TransformerLens)
            watch_blocks(stream.target, ran)
        for needed, expected in (
            (streams, {(Plain, 0), (Plain, 1)}),
            (streams[:1], {(Plain, 0), (Plain, 1)}),
            (streams[1:2], {(Plain, 0)}),
            (streams[2:], set[Any]()),
        ):
            ran.clear()
            harvest.begin(0, needed, pool).wait()
            assert {*ran} == expected


def watch_blocks(target: TransformerLens, ran: list[tuple[type, int]]) -> None:
    """Note which blocks a pass goes through to their ends."""
    ways = target.passes
    assert isinstance(ways, Plain | Bridged)
    blocks = ways.model.model.layers if isinstance(ways, Plain) else ways.bridge.blocks
    for layer, block in enumerate(blocks):

        def through(*_: Any, layer: int = layer) -> None:
            ran.append((type(ways), layer))

        block.mlp.register_forward_hook(through)


# --- Training from one harvest -------------------------------------------------------------


@pytest.fixture(params=["by the members' threads", "by a thread of its own"])
def read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are read as on a CPU, and as on an accelerator."""
    if request.param == "by a thread of its own":
        monkeypatch.setattr(pack, "looks_whole", Mock(return_value=True))


def runs_at(where: Path, nodes: Sequence[Node], *overrides: str, **stream: Any) -> list[Run]:
    """Runs with two k each for every target model."""
    made: list[Run] = []
    for node in nodes:
        for k in (4, 8):
            run = small_run(where, f"k={k}", *overrides)
            config = config_of(run.config, node, **stream)
            name = identity(config)
            made.append(Run(name, "small", where / name, config, run.choices, run.overrides))
    return made


def finished(outcomes: Sequence[Any]) -> list[bool]:
    return [isinstance(outcome, Result) for outcome in outcomes]


@pytest.mark.usefixtures("read")
@pytest.mark.parametrize(
    ("hooks", "overrides"),
    [
        (POST[:2], []),
        pytest.param([WIDE, "hook_embed"], [], marks=pytest.mark.slow),
        pytest.param(
            POST[:2],
            ["method=topk", "fine_tune=kl", "fine_tune.tokens=512"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_runs_of_a_layer_sweep_are_those_alone(
    hooks: list[str], overrides: list[str], folder: Path, tmp_path: Path
) -> None:
    nodes = [model(folder, hook) for hook in hooks]
    packed = runs_at(tmp_path / "packed", nodes, *overrides)
    assert finished(train(*packed)) == [True] * 4
    singles = runs_at(tmp_path / "alone", nodes, *overrides)
    for run, other in zip(packed, singles, strict=True):
        assert finished(train(other)) == [True]
        assert_equal_runs(run, other)


@pytest.mark.slow
def test_a_layer_sweep_is_measured_anew_as_each_run_alone(folder: Path, tmp_path: Path) -> None:
    runs = runs_at(tmp_path, [model(folder, hook) for hook in POST[:2]])
    assert finished(train(*runs)) == [True] * 4
    given = replace(runs[0].config.evaluation, tokens=640, ce_tokens=100)
    runs = [replace(run, config=replace(run.config, evaluation=given)) for run in runs]
    together: list[Any] = measure(*runs)
    singly: list[Any] = [measure(run)[0] for run in runs]
    assert [result.metrics for result in together] == [result.metrics for result in singly]
    assert len({result.metrics["fvu"] for result in together}) == 4


@pytest.mark.usefixtures("read")
@pytest.mark.slow
@pytest.mark.parametrize("far", [False, True])
def test_an_interrupted_layer_sweep_goes_on_to_the_same_end(
    far: bool, folder: Path, tmp_path: Path
) -> None:
    """Also where the runs at one hook stand further on than those at the other."""
    nodes = [model(folder, hook) for hook in POST[:2]]
    through = runs_at(tmp_path / "through", nodes)
    assert finished(train(*through)) == [True] * 4
    broken = runs_at(tmp_path / "broken", nodes, OFTEN)
    if far:
        with pytest.raises(Interrupted):
            train_pack(broken[2:], Interrupting(1, 6))
    with pytest.raises(Interrupted):
        train_pack(broken, Interrupting(0, 3))
    assert 0 < broken[0].files.saved_tokens < broken[0].config.total_tokens
    assert not list(tmp_path.glob("broken/*/result.json"))
    assert finished(train(*broken)) == [True] * 4
    for run, other in zip(broken, through, strict=True):
        assert_equal_runs(run, other)


@pytest.mark.usefixtures("read")
def test_what_nobody_needs_any_more_is_not_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, list[str]]] = []
    begin = Harvest.begin

    def remembered(self: Harvest, index: int, streams: Any, pool: Any) -> Chunks:
        begun.append((index, [stream.target.hook for stream in streams]))
        return begin(self, index, streams, pool)

    monkeypatch.setattr(Harvest, "begin", remembered)
    short = runs_at(tmp_path, [model(folder, POST[1])], "training.tokens=1536")
    long = runs_at(tmp_path, [model(folder, POST[0])])
    assert finished(train(*short, *long)) == [True] * 4
    both = [POST[1], POST[0]]
    assert begun == [(0, both), (1, both), (2, POST[:1]), (3, POST[:1])]


# --- Activations that are no numbers -------------------------------------------------------


@pytest.mark.usefixtures("read")
@pytest.mark.slow
def test_a_hook_without_numbers_fails_its_own_runs(tmp_path: Path) -> None:
    """One that is spoilt from the start, and one where it shows in training."""
    nodes = [own(hook) for hook in ("a", "always", "later", "bb")]
    runs = runs_at(tmp_path / "with", nodes)
    outcomes = load(runs, [], Quiet()).train(Off())
    assert finished(outcomes) == [True, True, False, False, False, False, True, True]
    for outcome, kind in zip(
        outcomes[2:6], [ConfigError] * 2 + [FloatingPointError] * 2, strict=True
    ):
        assert type(outcome) is kind
        said = str(outcome)
        assert "not finite on" in said and "damaged" in said and "\n" not in said
    assert "on 1 of 1024 tokens" in str(outcomes[4])
    failed = [(run.folder / "failed.json").exists() for run in runs]
    assert failed == [False, False, False, False, True, True, False, False]
    for run in (*runs[:2], *runs[6:]):
        node = run.config.nodes["target_model"]
        k = 0 if "k=4" in run.overrides else 1
        other = runs_at(tmp_path / "alone", [node])[k]
        assert finished(train(other)) == [True]
        assert_equal_runs(run, other)


def test_predictions_without_numbers_fail_the_runs_that_measure_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a few rows did not show it; runs of the other hook are finished all the same."""
    nodes = [small_run(tmp_path, f"target_model.hook={hook}") for hook in POST[:2]]
    reference_ce = Stream.reference_ce

    def spoilt(stream: Stream, tokens: int) -> dict[str, float]:
        if stream.target.hook == POST[0]:
            raise FloatingPointError("predictions are not finite")
        return reference_ce(stream, tokens)

    monkeypatch.setattr(Stream, "reference_ce", spoilt)
    outcomes = train(*nodes)
    assert finished(outcomes) == [False, True]
    assert isinstance(outcomes[0], FloatingPointError)
    assert [(run.folder / "failed.json").exists() for run in nodes] == [True, False]


def test_without_isolation_what_is_wrong_is_told_before_anything_is_written(tmp_path: Path) -> None:
    runs = runs_at(tmp_path, [own("a"), own("always")])
    with pytest.raises(ConfigError, match=r"target_model: .*not finite"):
        train(*runs)
    assert not list(tmp_path.iterdir())


def test_numbers_too_large_for_the_dtype(base: RunConfig, folder: Path, tmp_path: Path) -> None:
    """A model whose second block overflows in float16: what is below it can be harvested."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    large = AutoModelForCausalLM.from_pretrained(folder)
    large.model.layers[1].mlp.down_proj.weight.data *= 1e5
    large.save_pretrained(tmp_path / "large")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "large")
    nodes = [model(tmp_path / "large", hook, dtype="float16") for hook in (POST[1], POST[0])]
    configs = [config_of(base, node) for node in nodes]
    with ThreadPoolExecutor(2) as pool:
        harvest = Harvest(configs, CPU, pool)
        with pytest.raises(ConfigError, match=r"not finite on 300 of 300 .*target_model\.dtype"):
            harvest.stream(configs[0])
        whole = harvest.stream(configs[1])
        chunks = harvest.begin(1, [whole], pool)
        chunks.wait()
        assert chunks.take(whole).equal(alone(configs[1]).chunk(1))
        given = replace(configs[1].evaluation, ce_tokens=128)  # which takes all of the model
        configs[1] = replace(configs[1], evaluation=given)
        with pytest.raises(ConfigError, match=r"predictions are not finite.*target_model\.dtype"):
            Harvest(configs[1:], CPU, pool).stream(configs[1])


# --- Memory and time -----------------------------------------------------------------------


class Ledger:
    """Tokens of activations that exist, by what they are."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.alive: dict[str, int] = {}
        self.most: dict[str, int] = {}

    def enter(self, name: str, acts: Tensor) -> None:
        with self.lock:
            self.alive[name] = self.alive.get(name, 0) + len(acts)
            self.most[name] = max(self.most.get(name, 0), self.alive[name])
        weakref.finalize(acts, self._leave, name, len(acts))

    def _leave(self, name: str, tokens: int) -> None:
        with self.lock:
            self.alive[name] -= tokens


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """Watch what passes give and what members get, by stream; both count as one."""
    kept = Ledger()
    read, shuffle = harvest_module._activations, Stream.shuffled  # pyright: ignore[reportPrivateUsage]

    def watched(targets: Sequence[TargetModel], split: Split, rows: Tensor) -> list[Tensor]:
        found = read(targets, split, rows)
        for target, acts in zip(targets, found, strict=True):
            kept.enter(f"{split} {target.hook}", acts)
        return found

    def shuffled(self: Stream, tokens: Tensor, index: int) -> Tensor:
        chunk = shuffle(self, tokens, index)
        kept.enter(f"train {self.target.hook}", chunk)
        return chunk

    monkeypatch.setattr(harvest_module, "_activations", watched)
    monkeypatch.setattr(Stream, "shuffled", shuffled)
    gc.disable()
    yield kept
    gc.enable()


@pytest.mark.parametrize("threads", [1, 3])
def test_two_chunks_of_a_stream_exist_at_most(
    threads: int,
    folder: Path,
    tmp_path: Path,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the garbage collector: what is done with is gone at once."""
    monkeypatch.setattr(pack, "workers", Mock(return_value=threads))
    nodes = [model(folder, hook) for hook in POST[:2]]
    runs = runs_at(tmp_path, nodes, "training.tokens=8192", calibration_tokens=512)
    assert finished(train(*runs)) == [True] * 4
    row, chunk = CONTEXT - 1, 1024
    for hook in POST[:2]:
        # A chunk's rows may begin and end outside of it.
        assert chunk < ledger.most[f"train {hook}"] <= 2 * chunk + 2 * row
        assert ledger.alive[f"train {hook}"] == 0
        assert ledger.most[f"held_out {hook}"] <= TOKENS + 2 * row


LIMIT_S = 20.0


def told(event: threading.Event, _: object) -> None:
    event.set()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_next_chunk_is_begun_while_members_train(
    threads: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members wait for it here; with a thread to spare also until a pass of it was run."""
    begun: dict[int, threading.Event] = {index: threading.Event() for index in range(4)}
    ran: dict[int, threading.Event] = {index: threading.Event() for index in range(4)}
    waited: list[bool] = []
    begin, advance = Harvest.begin, Member.advance
    expected = begun if threads == 1 else ran

    def beginning(self: Harvest, index: int, streams: Any, pool: Any) -> Chunks:
        chunks = begin(self, index, streams, pool)
        begun[index].set()
        for _, futures in chunks.reading.parts:
            futures[-1].add_done_callback(partial(told, ran[index]))
        return chunks

    def waiting(self: Member, chunk: Tensor, start: int) -> None:
        if (index := start // 1024 + 1) < 4:
            waited.append(expected[index].wait(LIMIT_S))
        advance(self, chunk, start)

    monkeypatch.setattr(Harvest, "begin", beginning)
    monkeypatch.setattr(Member, "advance", waiting)
    monkeypatch.setattr(pack, "workers", Mock(return_value=threads))
    [run, _] = runs_at(tmp_path, [model(folder, POST[0])])
    assert finished(train(run)) == [True]
    assert waited == [True] * 3


# --- Identities ----------------------------------------------------------------------------


def changed(config: RunConfig, path: str, value: Any) -> RunConfig:
    group, _, option = path.partition(".")
    tree = config.tree
    if not option:
        return RunConfig.of(tree | {group: value})
    assert tree[group][option] != value, path
    return RunConfig.of(tree | {group: tree[group] | {option: value}})


SAME = (
    *(("architecture.normalize", False), ("optimizer.lr", 0.5), ("training.tokens", 99)),
    *(("evaluation.tokens", 77), ("seed", 9), ("d_sae", 3), ("k", 3.0), ("device", "cuda")),
    *(("threads", 64), ("name", "else"), ("checkpoint_minutes", 7.0), ("force", True)),
)
OTHER = (
    *(("target_model.model", "else"), ("target_model.revision", "step3")),
    *(("target_model.dtype", "bfloat16"), ("target_model.compatibility_mode", True)),
    *(("target_model.rows_per_forward", 9), ("target_model._target_", "else.Else")),
    *(("data.context", 9), ("data.train", 9), ("data._target_", "else.Else")),
    *(("stream.seed", 9), ("stream.batch_tokens", 9), ("stream.chunk_tokens", 9)),
    *(("stream.calibration_tokens", 9), ("stream.repeat", False), ("stream.centre", False)),
    *(("stream.special_tokens", True), ("stream.skip_first", 1), ("stream.max_norm", 9.0)),
)


def test_identities_tell_apart_what_they_must(base: RunConfig, folder: Path) -> None:
    config = config_of(base, model(folder, POST[0]), seed=3, batch_tokens=512)
    stream, together = stream_identity(config), pass_identity(config)
    other_hook = changed(config, "target_model.hook", POST[1])
    assert stream_identity(other_hook) != stream and pass_identity(other_hook) == together
    for path, value in SAME:
        if "." in path and path.split(".")[1] not in config.tree[path.split(".")[0]]:
            continue
        other = changed(config, path, value)
        assert (stream_identity(other), pass_identity(other)) == (stream, together), path
    seen = {together}
    for path, value in OTHER:
        other = changed(config, path, value)
        assert stream_identity(other) != stream
        seen.add(pass_identity(other))
        again = changed(other, "target_model.hook", POST[1])
        assert pass_identity(again) == pass_identity(other)
    assert len(seen) == 1 + len(OTHER)


def test_where_there_is_no_hook_a_pass_is_a_stream(base: RunConfig) -> None:
    node = {"_target_": "sae_sweeps.target_model.activations.Activations", "path": "a.npy"}
    one, other = (config_of(base, node | {"path": path}) for path in ("a.npy", "b.npy"))
    assert stream_identity(one) == pass_identity(one) != pass_identity(other)
    assert (
        "hook" in config_of(base, model(Path("x"), "h")).nodes["target_model"]
    )  # nothing is taken out

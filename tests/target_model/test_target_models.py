"""Target models: activations and cross-entropy against Hugging Face; activations from files."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from sae_sweeps.config import rules
from sae_sweeps.data.embedded import Embedded
from sae_sweeps.data.none import NoData
from sae_sweeps.embedded import BOS, MODEL, load_tokens
from sae_sweeps.errors import ConfigError
from sae_sweeps.interfaces import Data, Splice, Split, TargetModel
from sae_sweeps.record.result import Result
from sae_sweeps.target_model import facts, loading, transformer_lens
from sae_sweeps.target_model.activations import Activations
from sae_sweeps.target_model.passes import Bridged, Passes
from sae_sweeps.target_model.transformer_lens import TransformerLens, rows_of_a_pass
from tests.support.launches import Launches, launches
from tests.support.places import ROOT
from tests.support.small import small_run, train

__all__ = ["launches"]  # a fixture

CPU = torch.device("cpu")
HOOK = "blocks.1.hook_resid_post"
KINDS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
ROWS = torch.tensor([5, 0, 1201, 77, 5, 600])
"""Some rows, not in order and one twice; more than one forward pass takes."""

RELATIVE = 1e-5
"""Largest difference from a reference, as a share of the reference's largest value."""


# --- References ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return GPT2LMHeadModel.from_pretrained(str(MODEL), dtype=torch.float32).eval()


@pytest.fixture(scope="module", autouse=True)
def one_model() -> Iterator[None]:
    """Load the embedded model once per way of running it: hooks share it, as runs of a pack do."""
    loaded: dict[tuple[object, ...], Passes] = {}
    load = loading.Loader.passes

    def passes(loader: loading.Loader, hook: str, compatibility_mode: bool) -> Passes:
        if loader.name != "embedded":
            return load(loader, hook, compatibility_mode)
        kinds = [False] if compatibility_mode or not loader.has(hook) else [True, False]
        for plain in kinds:
            key = loader.dtype, compatibility_mode, plain
            if key not in loaded:
                loaded[key] = load(loader, hook, compatibility_mode)
            if loaded[key].attach(hook):
                return loaded[key]
        raise AssertionError(hook)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading.Loader, "passes", passes)
        yield


@pytest.fixture(scope="module")
def data() -> Embedded:
    return Embedded(context_tokens=128)


def target(data: Data, hook: str = HOOK, **changed: Any) -> TransformerLens:
    given: dict[str, Any] = {
        "model": "embedded",
        "revision": None,
        "dtype": "float32",
        "compatibility_mode": False,
        "rows_per_forward": 4,
    } | changed
    return TransformerLens(data, CPU, hook=hook, **given)


@pytest.fixture(scope="module")
def embedded_target(data: Embedded) -> TransformerLens:
    return target(data)


def token_rows(split: Split, context: int = 128) -> Int[Tensor, "rows seq"]:
    """ROWS of the shipped tokens: a BOS, and what follows the previous row."""
    ids = torch.from_numpy(load_tokens(split)[0].astype(np.int64))
    width = context - 1
    rows = [F.pad(ids[i * width : (i + 1) * width], (1, 0), value=BOS) for i in ROWS.tolist()]
    return torch.stack(rows)


def first(value: Any) -> Tensor:
    """The tensor of a module's output or input."""
    return value if isinstance(value, Tensor) else value[0]


@torch.no_grad()
def modules_values(
    model: nn.Module, tokens: Int[Tensor, "rows seq"], outputs: list[str], inputs: list[str]
) -> dict[str, Tensor]:
    """What flows out of and into modules of a Hugging Face model, by their names."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, *output: Any) -> None:
            del module
            seen[name] = first(output[0] if output else given).clone()

        return hook

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(keep(name)) for name in outputs]
    handles += [modules[name].register_forward_pre_hook(keep(f"in {name}")) for name in inputs]
    model(tokens)
    for handle in handles:
        handle.remove()
    return seen


def gpt2_values(model: nn.Module, tokens: Tensor, layer: int) -> dict[str, Tensor]:
    """The residual stream and what is added to it, at one layer, as Hugging Face computes it."""
    block = f"transformer.h.{layer}"
    outputs, inputs = [block, f"{block}.attn", f"{block}.mlp"], [block, f"{block}.ln_2"]
    seen = modules_values(model, tokens, outputs, inputs)
    names = (f"in {block}", f"in {block}.ln_2", *outputs)
    return {kind: seen[name] for kind, name in zip(KINDS, names, strict=True)}


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= RELATIVE * theirs.abs().max()


def ce_of(target: TargetModel, rows: Tensor, splice: Splice) -> Tensor:
    with torch.no_grad():
        return target.spliced_losses("held_out", rows, splice).ce


def naive_ce(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of each token but BOS and the one that only BOS predicts."""
    log_probs = F.log_softmax(logits.double(), dim=-1)
    rows = [
        [-log_probs[row, at - 1, tokens[row, at]] for at in range(2, tokens.shape[1])]
        for row in range(len(tokens))
    ]
    return torch.tensor(rows)


@torch.no_grad()
def spliced_logits(
    model: nn.Module, block: str, tokens: Tensor, change: Callable[[Tensor], Tensor]
) -> Tensor:
    """Logits with a block's output changed at every position but the first."""

    def replace(module: nn.Module, given: Any, output: Any) -> Any:
        del module, given
        acts = first(output)
        acts = torch.cat([acts[:, :1], change(acts[:, 1:])], dim=1)
        return acts if isinstance(output, Tensor) else (acts, *output[1:])

    handle = dict(model.named_modules())[block].register_forward_hook(replace)
    logits = model(tokens).logits
    handle.remove()
    return logits


# --- Activations of a model ----------------------------------------------------------------


@pytest.mark.parametrize("layer", range(4))
def test_activations_are_hugging_faces(
    data: Embedded, reference: PreTrainedModel, layer: int
) -> None:
    tokens = token_rows("held_out")
    expected = gpt2_values(reference, tokens, layer)
    for kind in KINDS:
        made = target(data, f"blocks.{layer}.hook_{kind}")
        acts = made.activations("held_out", ROWS)
        assert acts.dtype == torch.float32 and made.d_in == 128
        assert_close(acts, expected[kind][:, 1:].flatten(0, 1))


def test_hidden_states_are_the_same(
    embedded_target: TransformerLens, reference: PreTrainedModel, data: Embedded
) -> None:
    """Hugging Face's own list, for the hooks that it covers."""
    tokens = token_rows("train")
    with torch.no_grad():
        states = reference(tokens, output_hidden_states=True).hidden_states
    assert_close(embedded_target.activations("train", ROWS), states[2][:, 1:].flatten(0, 1))
    before = target(data, "blocks.3.hook_resid_pre")
    assert_close(before.activations("train", ROWS), states[3][:, 1:].flatten(0, 1))


def test_hooks_inside_a_layer_work(data: Embedded, reference: PreTrainedModel) -> None:
    """The hidden layer of the MLP, which is wider, and the last hook of all."""
    tokens = token_rows("held_out")
    names = ["transformer.h.3.mlp.act", "transformer.ln_f"]
    expected = modules_values(reference, tokens, names, [])
    for hook, name in zip(("blocks.3.mlp.hook_post", "ln_final.hook_out"), names, strict=True):
        made = target(data, hook)
        assert made.d_in == expected[name].shape[-1]
        acts = made.activations("held_out", ROWS)
        assert_close(acts, expected[name][:, 1:].flatten(0, 1))


@pytest.mark.parametrize("rows_per_forward", [1, 5, 100, "auto"])
def test_the_size_of_a_forward_pass_changes_nothing(
    data: Embedded, embedded_target: TransformerLens, rows_per_forward: int | str
) -> None:
    made = target(data, rows_per_forward=rows_per_forward)
    expected = embedded_target.activations("held_out", ROWS)
    assert_close(made.activations("held_out", ROWS), expected)


def test_an_accelerator_is_given_many_rows_at_once() -> None:
    gpu = torch.device("cuda")
    assert rows_of_a_pass("auto", 128, CPU) == 16
    assert [rows_of_a_pass("auto", seq, gpu) for seq in (128, 1024, 65_536)] == [256, 32, 16]
    assert rows_of_a_pass(5, 128, CPU) == rows_of_a_pass(5, 128, gpu) == 5


def test_it_says_what_it_is(embedded_target: TransformerLens) -> None:
    for split in ("train", "held_out"):
        assert embedded_target.row_count(split) == len(load_tokens(split)[0]) // 127
    assert embedded_target.tokens_per_row == 127
    assert embedded_target.has_loss
    wanted = {"model_name": "embedded", "hook_name": HOOK, "context_size": 128, "prepend_bos": True}
    assert wanted.items() <= embedded_target.description.items()


# --- Cross-entropy -------------------------------------------------------------------------


def test_ce_is_the_naive_one(embedded_target: TransformerLens, reference: PreTrainedModel) -> None:
    tokens = token_rows("held_out")
    with torch.no_grad():
        expected = naive_ce(reference(tokens).logits, tokens)
    found = ce_of(embedded_target, ROWS, lambda acts: acts)
    assert found.shape == (len(ROWS), 126)
    assert_close(found.double(), expected)


def test_a_splice_that_gives_back_what_it_gets_changes_nothing(
    embedded_target: TransformerLens, data: Embedded
) -> None:
    clean = ce_of(embedded_target, ROWS, lambda acts: acts)
    for hook in ("blocks.0.hook_resid_pre", "blocks.2.hook_attn_out", "blocks.3.hook_mlp_out"):
        assert torch.equal(ce_of(target(data, hook), ROWS, lambda acts: acts), clean)

    def with_error(acts: Tensor) -> Tensor:
        """A poor reconstruction, and what it lacks."""
        recon = acts.round()
        return recon + (acts - recon)

    restored = ce_of(embedded_target, ROWS, with_error)
    assert (restored - clean).abs().max() < 1e-4
    assert abs((restored - clean).mean().item()) < 1e-6


def test_a_splice_of_zeros_ruins_the_model(embedded_target: TransformerLens) -> None:
    clean = ce_of(embedded_target, ROWS, lambda acts: acts).mean()
    assert clean < 4
    assert ce_of(embedded_target, ROWS, torch.zeros_like).mean() > clean + 5


@pytest.mark.parametrize("layer", [0, 3])
def test_a_splice_sits_at_its_hook(data: Embedded, reference: PreTrainedModel, layer: int) -> None:
    """Another activation everywhere but at BOS: what Hugging Face's model makes of it."""
    tokens = token_rows("held_out")
    block = f"transformer.h.{layer}"
    expected = naive_ce(spliced_logits(reference, block, tokens, torch.relu), tokens)
    made = target(data, f"blocks.{layer}.hook_resid_post")
    found = ce_of(made, ROWS, torch.relu)
    assert_close(found.double(), expected)
    assert (found - ce_of(made, ROWS, lambda acts: acts)).abs().mean() > 0.5


def kl_of(target: TargetModel, rows: Tensor, splice: Splice) -> Tensor:
    with torch.no_grad():
        return target.spliced_losses("held_out", rows, splice).kl


def naive_kl(clean: Tensor, spliced: Tensor) -> Tensor:
    """sum p_clean (log p_clean - log p_spliced) where `naive_ce` has a cross-entropy."""
    log_p, log_q = (F.log_softmax(logits.double(), dim=-1)[:, 1:-1] for logits in (clean, spliced))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("layer", [0, 3])
def test_kl_is_the_naive_one(data: Embedded, reference: PreTrainedModel, layer: int) -> None:
    tokens = token_rows("held_out")
    with torch.no_grad():
        clean = reference(tokens).logits
    spliced = spliced_logits(reference, f"transformer.h.{layer}", tokens, torch.relu)
    found = kl_of(target(data, f"blocks.{layer}.hook_resid_post"), ROWS, torch.relu)
    assert found.shape == (len(ROWS), 126)
    assert_close(found.double(), naive_kl(clean, spliced))
    assert (found.double() - naive_kl(spliced, clean)).abs().mean() > 0.05  # not the other way
    assert found.min() > 0


def test_kl_of_the_same_predictions_is_zero(embedded_target: TransformerLens) -> None:
    assert torch.equal(kl_of(embedded_target, ROWS, torch.clone), torch.zeros(len(ROWS), 126))
    nearly = kl_of(embedded_target, ROWS, lambda acts: acts + 1e-4)
    assert nearly.abs().max() < 1e-4


def test_kl_survives_predictions_that_underflow(embedded_target: TransformerLens) -> None:
    """A probability of 0 in float32, whose logarithm would be minus infinity."""
    last = target(Embedded(context_tokens=128), "ln_final.hook_out")
    assert kl_of(last, ROWS, lambda acts: -100 * acts).isfinite().all()
    assert kl_of(last, ROWS, lambda acts: -100 * acts).min() > 50
    assert kl_of(embedded_target, ROWS, lambda acts: 1e6 * acts).isfinite().all()


@pytest.mark.parametrize("kept_bytes", [0, 10**7, 2**29])
def test_what_is_kept_of_the_clean_model_changes_nothing(
    data: Embedded, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    monkeypatch.setattr(transformer_lens, "KEPT_BYTES", kept_bytes)
    made = target(data)
    expected = kl_of(made, ROWS, torch.relu)
    others = torch.flip(ROWS, (0,))
    assert torch.equal(kl_of(made, ROWS, torch.relu), expected)
    assert_close(kl_of(made, others, torch.relu).flip(0), expected)
    assert_close(kl_of(made, ROWS[2:3], torch.relu), expected[2:3])
    kept = made._clean.values()  # pyright: ignore[reportPrivateUsage]
    assert sum(log_probs.nbytes for log_probs in kept) <= kept_bytes
    assert bool(kept) == (kept_bytes > 0)
    with torch.no_grad():
        made.spliced_losses("train", ROWS, torch.clone)
        assert made.spliced_losses("train", ROWS, torch.clone).kl.abs().max() == 0


def test_the_losses_of_kept_predictions_cost_one_pass(
    data: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = target(data, rows_per_forward=len(ROWS))
    passes: list[str] = []
    logits = made.passes.logits

    def counted(*words: Any) -> Any:
        passes.append("one")
        return logits(*words)

    monkeypatch.setattr(made.passes, "logits", counted)
    kl_of(made, ROWS, torch.relu)
    assert len(passes) == 2
    kl_of(made, ROWS, torch.tanh)
    assert len(passes) == 3


def test_losses_are_differentiable_through_the_splice(data: Embedded) -> None:
    """Against a difference quotient, whether the clean predictions are kept or not."""
    made = target(data)
    rows = ROWS[:2]

    def losses(gain: Tensor) -> tuple[Tensor, Tensor]:
        found = made.spliced_losses("held_out", rows, lambda acts: acts * gain)
        return found.ce.mean(), found.kl.mean()

    for _ in range(2):
        gain = torch.tensor(0.7, requires_grad=True)
        for index in range(2):
            (slope,) = torch.autograd.grad(losses(gain)[index], gain)
            with torch.no_grad():
                ends = [losses(torch.tensor(0.7 + step))[index].item() for step in (-0.01, 0.01)]
            assert slope.item() == pytest.approx((ends[1] - ends[0]) / 0.02, rel=0.01)


def test_a_splice_sees_what_is_harvested(embedded_target: TransformerLens) -> None:
    seen: list[Tensor] = []

    def look(acts: Float[Tensor, "rows seq d_in"]) -> Float[Tensor, "rows seq d_in"]:
        seen.append(acts.clone())
        return acts

    ce_of(embedded_target, ROWS, look)
    assert [len(part) for part in seen] == [4, 2]
    harvested = embedded_target.activations("held_out", ROWS)
    assert torch.equal(torch.cat(seen).flatten(0, 1), harvested)


def test_after_an_error_in_a_splice_the_model_is_as_before(
    embedded_target: TransformerLens,
) -> None:
    clean = ce_of(embedded_target, ROWS, lambda acts: acts)

    def fail(acts: Tensor) -> NoReturn:
        raise FloatingPointError(f"at {acts.shape}")

    with pytest.raises(FloatingPointError):
        ce_of(embedded_target, ROWS, fail)
    assert embedded_target.passes.logits(torch.tensor([[0, 1, 2]]), None).isfinite().all()
    assert torch.equal(ce_of(embedded_target, ROWS, lambda acts: acts), clean)


# --- Threads and sockets -------------------------------------------------------------------


def test_a_pass_of_another_size_meanwhile_changes_nothing(data: Embedded) -> None:
    """One thread's pass begins between the token and the position embedding of another's."""
    made = target(data, compatibility_mode=True)
    assert isinstance(made.passes, Bridged)
    bridge = made.passes.bridge
    inside, begun, ended = threading.Event(), threading.Event(), threading.Event()

    def interleave(acts: Tensor, hook: Any) -> Tensor:
        del hook
        if threading.current_thread().name.startswith("first"):
            inside.set()
            begun.wait(timeout=2)
        else:
            begun.set()
            ended.wait(timeout=2)
        return acts

    def first_pass() -> Tensor:
        try:
            return made.activations("train", ROWS[:1])
        finally:
            ended.set()

    expected = [made.activations("train", rows) for rows in (ROWS[:1], ROWS[:3])]
    bridge.add_hook("embed.hook_out", interleave)
    try:
        with ThreadPoolExecutor(1, "first") as one, ThreadPoolExecutor(1, "second") as other:
            found = [one.submit(first_pass)]
            inside.wait(timeout=2)
            found.append(other.submit(made.activations, "train", ROWS[:3]))
        assert all(torch.equal(f.result(), e) for f, e in zip(found, expected, strict=True))
    finally:
        bridge.reset_hooks()


@pytest.mark.slow
def test_threads_may_harvest_and_splice_at_once(embedded_target: TransformerLens) -> None:
    """Passes of 4, 2 and 1 rows side by side, with threads changing all the time."""

    def harvest(i: int) -> Tensor:
        return embedded_target.activations("train", ROWS[: 1 + i % 6] + i)

    def splice(i: int) -> Tensor:
        return ce_of(embedded_target, ROWS[: 1 + i % 5], lambda acts: acts * (i / 10))

    expected = [(harvest(i), splice(i)) for i in range(20)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as harvesters, ThreadPoolExecutor(2) as splicers:
            harvested = harvesters.map(harvest, range(20))
            spliced = splicers.map(splice, range(20))
            found = list(zip(harvested, spliced, strict=True))
    finally:
        sys.setswitchinterval(interval)
    for (acts, ce), (their_acts, their_ce) in zip(found, expected, strict=True):
        assert torch.equal(acts, their_acts) and torch.equal(ce, their_ce)


NO_SOCKETS = """
import socket, torch
attempts = []
def refuse(*arguments, **named):
    attempts.append(arguments)
    raise OSError("the test denies sockets")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.create_connection = socket.getaddrinfo = socket.socket.bind = refuse
from sae_sweeps.data.embedded import Embedded
from sae_sweeps.target_model.transformer_lens import TransformerLens
made = TransformerLens(
    Embedded(context_tokens=128), torch.device("cpu"), model="embedded",
    hook="blocks.1.hook_resid_post", revision=None, dtype="float32", compatibility_mode=False,
    rows_per_forward=2,
)
made.activations("train", torch.arange(3))
made.spliced_losses("held_out", torch.arange(3), lambda acts: acts)
raise SystemExit(str(attempts) if attempts else 0)
"""


@pytest.mark.slow
def test_the_embedded_model_opens_no_socket(tmp_path: Path) -> None:
    """In a fresh process, with an empty cache and no variable that says to stay offline."""
    env = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    line = [sys.executable, "-c", NO_SOCKETS]
    done = subprocess.run(
        line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Refuse and record every attempt to reach the network."""
    attempts: list[object] = []

    def refuse(*arguments: object, **_: object) -> NoReturn:
        attempts.append(arguments)
        raise OSError("the test denies sockets")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


# --- Other precisions, hooks, folders ------------------------------------------------------


def test_bfloat16_gives_nearly_the_same(data: Embedded, embedded_target: TransformerLens) -> None:
    half = target(data, dtype="bfloat16")
    exact, acts = (t.activations("held_out", ROWS) for t in (embedded_target, half))
    assert acts.dtype == torch.float32
    assert 0 < (acts - exact).norm() / exact.norm() < 0.02
    clean, halved = (ce_of(t, ROWS, lambda x: x) for t in (embedded_target, half))
    assert halved.dtype == torch.float32
    assert (halved - clean).abs().max() < 0.5 and (halved - clean).mean().abs() < 0.02
    assert ce_of(half, ROWS, torch.zeros_like).mean() > clean.mean() + 5


def test_float16_on_a_cpu_that_is_not_made_for_it_is_told_of(
    data: Embedded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    features: dict[str, bool] = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    for name, told in (("avx512_bf16", True), ("avx512_fp16", False), ("avx2", True)):
        features.clear()
        features[name] = True
        caplog.clear()
        target(data, dtype="float16")
        assert told == any("dtype is 'float16'" in line for line in caplog.messages)
        expected = torch.bfloat16 if name == "avx512_bf16" else torch.float32
        assert loading.dtype_for("auto", CPU) is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as of an older torch
    assert loading.dtype_for("auto", CPU) is torch.float32


@pytest.mark.parametrize(
    ("hook", "nearest"),
    [
        ("blocks.1.hook_resid_pots", "blocks.1.hook_resid_post"),
        ("blocks.1.hook_resid_postt", "blocks.1.hook_resid_post"),
        ("block.2.hook_mlp_out", "blocks.2.hook_mlp_out"),
        ("blocks.4.hook_resid_post", "blocks.3.hook_resid_post"),
    ],
)
def test_an_unknown_hook_is_refused_with_the_nearest(
    data: Embedded, hook: str, nearest: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        target(data, hook)
    message = str(refused.value)
    assert message.startswith(f"target_model.hook is {hook!r}") and "\n" not in message
    close = {
        nearest,
        nearest.replace("3", "1"),
        nearest.replace("3", "0"),
        nearest.replace("3", "2"),
    }
    assert any(name in message for name in close)


def test_a_hook_of_another_shape_is_refused(data: Embedded) -> None:
    with pytest.raises(ConfigError, match=r"blocks\.0\.attn\.hook_pattern.*\(2, 4, 3, 3\)"):
        target(data, "blocks.0.attn.hook_pattern")


def test_a_hook_that_never_fires_is_refused(data: Embedded) -> None:
    with pytest.raises(ConfigError, match=r"target_model\.hook"):
        target(data, "blocks.1.attn.qkv.hook_out", compatibility_mode=True)


def test_a_hook_that_is_switched_off_is_not_offered_again(data: Embedded) -> None:
    with pytest.raises(ConfigError) as refused:
        target(data, "blocks.1.hook_q_input")
    assert str(refused.value).count("blocks.1.hook_q_input") == 1


@pytest.mark.parametrize("model", ["/nowhere/model", "./nowhere", "no/such/place", ""])
def test_an_unknown_folder_is_refused_without_a_call(
    data: Embedded, no_network: list[object], model: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        target(data, model=model)
    assert str(refused.value).startswith(f"target_model.model is {model!r}")
    assert "\n" not in str(refused.value) and no_network == []


@pytest.mark.slow
def test_no_hook_that_works_is_refused_before(
    data: Embedded,
) -> None:
    """The rule that judges a hook by its name lets everything through that has the right shape."""
    config = small_run(Path("unused")).config.tree
    refused: list[str] = []
    bridged = target(data, compatibility_mode=True).passes
    assert isinstance(bridged, Bridged)
    for hook in [name for name in bridged.bridge.hook_dict if "blocks.2." in name]:
        try:
            target(data, hook)
        except Exception:
            continue  # that hook does not work, whatever it is told with
        node = config["target_model"] | {"hook": hook}
        try:
            rules.obey(config | {"target_model": node})
        except ConfigError:
            refused.append(hook)
    assert refused == []


def test_a_folder_may_begin_with_a_tilde(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders["llama"]
    monkeypatch.setenv("HOME", str(folder.parent))
    model = f"~/{folder.name}"
    assert facts.model_folder(model, None) == folder
    assert target(Embedded(context_tokens=64), model=model).d_in == 32


@pytest.mark.parametrize(
    "word",
    [
        "data.context_tokens=1",
        "data.context_tokens=2",
        "data.context_tokens=129",
        "evaluation.ce_tokens=0",
    ],
)
def test_extremes_work_or_are_refused(tmp_path: Path, word: str) -> None:
    run = small_run(tmp_path, word)
    try:
        rules.obey(run.config.tree)
        [outcome] = train(run)
    except ConfigError:
        return
    assert isinstance(outcome, Result)


# --- Other architectures -------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
BLOCKS = {"neox": "gpt_neox.layers", "llama": "model.layers"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two tiny random models with the embedded tokenizer, each in a folder."""
    torch.manual_seed(0)
    models: dict[str, Any] = {
        "neox": GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, vocab_size=4096)),
        "llama": LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=4096, num_key_value_heads=2)),
    }
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    made: dict[str, Path] = {}
    for name, model in models.items():
        for parameter in model.parameters():
            parameter.data *= 3  # far enough from linear, and from uniform logits
        made[name] = tmp_path_factory.mktemp(name)
        model.eval().save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


@pytest.mark.parametrize(("name", "layer"), [("neox", 0), ("neox", 1), ("llama", 0), ("llama", 1)])
def test_other_architectures_from_a_folder(
    folders: dict[str, Path], no_network: list[object], name: str, layer: int
) -> None:
    data, block = Embedded(context_tokens=64), f"{BLOCKS[name]}.{layer}"
    hook = f"blocks.{layer}.hook_resid_post"
    made = target(data, hook, model=str(folders[name]))
    kind = GPTNeoXForCausalLM if name == "neox" else LlamaForCausalLM
    reference = kind.from_pretrained(folders[name], dtype=torch.float32).eval()
    tokens = token_rows("held_out", context=64)
    expected = modules_values(reference, tokens, [block], [])[block]
    assert_close(made.activations("held_out", ROWS), expected[:, 1:].flatten(0, 1))
    with torch.no_grad():
        clean = naive_ce(reference(tokens).logits, tokens)
    assert_close(ce_of(made, ROWS, lambda acts: acts).double(), clean)
    spliced = naive_ce(spliced_logits(reference, block, tokens, torch.relu), tokens)
    assert_close(ce_of(made, ROWS, torch.relu).double(), spliced)
    assert (spliced - clean).abs().mean() > 0.01
    assert no_network == []


def test_tokens_beyond_the_models_vocabulary_are_refused(tmp_path: Path) -> None:
    GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, vocab_size=1000)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="1000"):
        target(Embedded(context_tokens=64), model=str(tmp_path))


def test_damaged_weights_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["llama"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(ConfigError, match=r"target_model\.model"):
        target(Embedded(context_tokens=64), model=str(tmp_path))


# --- Activations from files ----------------------------------------------------------------

VALUES = np.random.default_rng(0).normal(size=(120, 8)).astype(np.float32)


def from_files(path: Path, held_out_path: Path | None = None) -> Activations:
    held_out = held_out_path and str(held_out_path)
    return Activations(NoData(), CPU, path=str(path), held_out_path=held_out)


def write(path: Path, values: np.ndarray) -> Path:
    """Store an array by the suffix of its path."""
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        save_file({"acts": torch.from_numpy(np.ascontiguousarray(values))}, path)
    return path


def held(made: Activations, split: Any) -> np.ndarray:
    """All activations of a split."""
    acts = made.activations(split, torch.arange(made.row_count(split)))
    assert acts.dtype == torch.float32
    return acts.numpy()


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("shape", [(120, 8), (10, 12, 8)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_files_give_their_rows(
    tmp_path: Path, suffix: str, shape: tuple[int, ...], dtype: str
) -> None:
    values = VALUES.astype(dtype)
    path = write(tmp_path / f"train{suffix}", values.reshape(shape))
    made = from_files(path)
    assert (made.d_in, made.tokens_per_row, made.has_loss) == (8, 1, False)
    assert np.array_equal(held(made, "train"), values[:108].astype("float32"))
    assert np.array_equal(held(made, "held_out"), values[108:].astype("float32"))
    other = write(tmp_path / f"other{suffix}", values[:7])
    given = from_files(path, other)
    assert np.array_equal(held(given, "train"), values.astype("float32"))
    assert np.array_equal(held(given, "held_out"), values[:7].astype("float32"))
    some = torch.tensor([3, 3, 0])
    assert np.array_equal(given.activations("train", some).numpy(), held(given, "train")[some])


def test_files_may_be_of_two_kinds_and_bfloat16(tmp_path: Path) -> None:
    values = torch.from_numpy(VALUES).bfloat16()
    save_file({"any name": values}, tmp_path / "train.safetensors")
    made = from_files(tmp_path / "train.safetensors", write(tmp_path / "held.npy", VALUES))
    assert np.array_equal(held(made, "train"), values.float().numpy())
    assert np.array_equal(held(made, "held_out"), VALUES)


def test_column_major_arrays_are_read_by_row(tmp_path: Path) -> None:
    cube = np.asfortranarray(VALUES.reshape(10, 12, 8))
    assert np.array_equal(held(from_files(write(tmp_path / "f.npy", cube)), "train"), VALUES[:108])


BAD_FILES: dict[str, Callable[[Path], object]] = {
    "one-dimensional.npy": lambda p: write(p, VALUES[0]),
    "scalar.npy": lambda p: write(p, np.array(1.0)),
    "four-dimensional.npy": lambda p: write(p, VALUES.reshape(5, 3, 8, 8)),
    "four-dimensional.safetensors": lambda p: write(p, VALUES.reshape(5, 3, 8, 8)),
    "integers.npy": lambda p: write(p, VALUES.astype("int32")),
    "integers.safetensors": lambda p: write(p, VALUES.astype("int64")),
    "booleans.npy": lambda p: write(p, VALUES > 0),
    "complex.npy": lambda p: write(p, VALUES.astype(complex)),
    "missing.npy": lambda _: None,
    "missing.safetensors": lambda _: None,
    "folder.npy": lambda p: p.mkdir(),
    "other-kind.pt": lambda p: torch.save(torch.zeros(3, 3), p),
    "two-tensors.safetensors": lambda p: save_file({"a": torch.ones(2), "b": torch.ones(2)}, p),
    "no-tensor.safetensors": lambda p: save_file({}, p),
    "text.npy": lambda p: write(p, np.array([["a", "b"]])),
    "objects.npy": lambda p: write(p, np.array([[{}]], dtype=object)),
    "big-endian.npy": lambda p: write(p, VALUES.astype(">f4")),
    "cut.npy": lambda p: p.write_bytes(write(p, VALUES).read_bytes()[:1000]),
    "empty.npy": lambda p: p.touch(),
    "empty.safetensors": lambda p: p.touch(),
    "not-numpy.npy": lambda p: p.write_text("x" * 500),
    "not-safetensors.safetensors": lambda p: p.write_text("x" * 500),
    "no-rows.npy": lambda p: write(p, VALUES[:0]),
    "no-columns.npy": lambda p: write(p, VALUES[:, :0]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    BAD_FILES[name](path)
    with pytest.raises(ConfigError) as refused:
        from_files(path)
    message = str(refused.value)
    assert message.startswith("target_model.path") and repr(str(path)) in message
    assert "\n" not in message


def test_the_held_out_file_is_judged_too(tmp_path: Path) -> None:
    path = write(tmp_path / "train.npy", VALUES)
    with pytest.raises(ConfigError, match=r"held_out_path holds .* width 5, .* width 8"):
        from_files(path, write(tmp_path / "narrow.npy", VALUES[:, :5]))
    with pytest.raises(ConfigError, match=r"^target_model\.held_out_path .*no such file"):
        from_files(path, tmp_path / "none.npy")
    with pytest.raises(
        ConfigError, match=r"^target_model\.held_out_path .*int16 of shape \(9, 8\)"
    ):
        from_files(path, write(tmp_path / "integers.npy", VALUES[:9].astype("int16")))


# --- Real runs -----------------------------------------------------------------------------

TINY = [
    *("-m", "tracking=off", "hydra.launcher.progress=off", "d_sae=64", "k=4", "device=cpu"),
    *("stream.batch_tokens=256", "stream.chunk_tokens=1024", "stream.calibration_tokens=512"),
    *("training.tokens=8192", "evaluation.tokens=1024", "evaluation.ce_tokens=512"),
]


def results(cwd: Path, name: str) -> list[dict[str, Any]]:
    paths = sorted((cwd / "outputs" / name / "runs").glob("*/result.json"))
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.slow
def test_runs_on_files_have_no_cross_entropy(launches: Launches, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    codes = generator.exponential(size=(12000, 40)) * (generator.random((12000, 40)) < 0.1)
    acts = (5 * codes @ generator.normal(size=(40, 16)) + 3).astype("float16")
    np.save(tmp_path / "acts.npy", acts)
    words = ["name=files", "method=topk,gated", "target_model=activations"]
    launch = launches.run(tmp_path, *TINY, *words, "target_model.path=acts.npy")
    assert launch.code == 0, launch.err
    made = results(tmp_path, "files")
    assert sorted(result["label"] for result in made) == ["gated", "token_choice + aux_k"]
    for result in made:
        figures = result["metrics"] | result["batch"]
        assert not [name for name in figures if "ce" in name.split("_")]
        assert 0 < result["metrics"]["fvu"] < 0.9 and result["metrics"]["l0"] > 0
        assert result["evaluation"]["ce_tokens"] == 0
        assert result["choices"]["data"] == "none"


@pytest.mark.slow
def test_a_sweep_over_models_in_folders(
    launches: Launches, tmp_path: Path, folders: dict[str, Path]
) -> None:
    axis = "target_model.model=" + ",".join(str(folder) for folder in folders.values())
    words = ["name=folders", "target_model=transformer_lens", axis, "data.context_tokens=64"]
    hook = "target_model.hook=blocks.1.hook_resid_post"
    launch = launches.run(tmp_path, *TINY, *words, hook)
    assert launch.code == 0, launch.err
    made = results(tmp_path, "folders")
    assert len(made) == 2
    assert len({result["metrics"]["ce_clean"] for result in made}) == 2
    for result in made:
        figures = result["metrics"]
        assert figures["l0"] <= 4 and figures["fvu"] < 0.9
        assert figures["ce"] == pytest.approx(figures["ce_clean"] + figures["delta_ce"])

"""Real architectures, tiny: activations, losses and loading against Hugging Face's own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

from sae_sweeps.data.token_rows import tokenizer_hash
from sae_sweeps.errors import ConfigError
from sae_sweeps.record.identity import identity, pass_identity, stream_identity
from sae_sweeps.system.tokenizers import first_token
from sae_sweeps.target_model import loading
from sae_sweeps.target_model.passes import Bridged, Plain
from tests.support.families import (
    CPU,
    FAMILIES,
    GEMMA,
    KINDS,
    LAYERS,
    WIDTH,
    Drawn,
    enliven,
    reference,
    save,
    target,
    teach,
    text,
    tokenizer,
)
from tests.support.fork_server import environment
from tests.support.launches import Launches, launches
from tests.support.places import ROOT
from tests.support.small import small_run

__all__ = ["launches"]  # a fixture

POST = "blocks.1.hook_resid_post"
EVERY = pytest.mark.parametrize("name", FAMILIES)
WAYS = pytest.mark.parametrize("way", [Plain, Bridged])

RELATIVE = 1e-5
"""Largest difference from a reference, as a share of the reference's largest value."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever tries to reach the network fails."""

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"the network was asked for: {arguments}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def assert_close(ours: Tensor, theirs: Tensor, relative: float = RELATIVE) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= relative * theirs.abs().max()


def far_apart(ours: Tensor, theirs: Tensor) -> bool:
    """Whether values differ by what no rounding explains."""
    return bool((ours - theirs).abs().max() > 0.01 * theirs.abs().max())


# --- Hugging Face's values -----------------------------------------------------------------


Places = dict[str, tuple[str, str]]
"""Hooks, and the Hugging Face module and its side where they lie."""


def places(name: str, layer: int) -> Places:
    """Where the residual stream's hooks of a layer lie, as the papers of the family say."""
    family = FAMILIES[name]
    block = f"{family.blocks}.{layer}"
    found = {
        "resid_pre": (block, "in"),
        "resid_post": (block, "out"),
        "attn_out": (f"{block}.{family.attention}", "out"),
        "mlp_out": (f"{block}.{family.mlp}", "out"),
    }
    if family.between:
        found["resid_mid"] = f"{block}.{family.between}", "in"
    return {f"blocks.{layer}.hook_{kind}": place for kind, place in found.items()}


Change = Callable[[str, Tensor], Tensor]


def taken(change: Change, hook: str, _: Any, words: Any) -> Any:
    """Change what a module takes."""
    return (change(hook, words[0]), *words[1:])


def given(change: Change, hook: str, _: Any, words: Any, output: Any) -> Any:
    """Change what a module gives."""
    del words
    if isinstance(output, tuple):
        return (change(hook, output[0]), *output[1:])
    return change(hook, output)


@torch.no_grad()
def run_with(model: Any, tokens: Tensor, where: Places, change: Change) -> Tensor:
    """Logits with values changed where they flow by."""

    handles: list[Any] = []
    for hook, (path, side) in where.items():
        module = model.get_submodule(path)
        if side == "in":
            handles.append(module.register_forward_pre_hook(partial(taken, change, hook)))
        else:
            handles.append(module.register_forward_hook(partial(given, change, hook)))
    try:
        return model(input_ids=tokens, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def values(model: Any, tokens: Tensor, where: Places) -> dict[str, Tensor]:
    """What Hugging Face's model has there."""
    seen: dict[str, Tensor] = {}

    def look(hook: str, acts: Tensor) -> Tensor:
        seen[hook] = acts.clone()
        return acts

    run_with(model, tokens, where, look)
    return seen


@torch.no_grad()
def hidden_states(model: Any, tokens: Tensor) -> tuple[Tensor, ...]:
    """The stream before each block, and after the final norm."""
    return model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states


def flat(acts: Tensor) -> Tensor:
    """[rows, seq, ...] to tokens without BOS, heads side by side."""
    return acts[:, 1:].flatten(0, 1).flatten(1)


@EVERY
def test_activations_are_hugging_faces(name: str, folders: dict[str, Path]) -> None:
    """All hooks of all layers, from one pass."""
    model, data = reference(folders[name]), Drawn()
    made = target(folders[name], POST, data)
    assert isinstance(made.passes, Plain)
    tokens, rows = data.tokens(made), torch.arange(12)
    where = {hook: place for layer in range(LAYERS) for hook, place in places(name, layer).items()}
    beside = {hook: made.beside(hook) for hook in where}
    assert {hook: other and other.d_in for hook, other in beside.items()} == dict.fromkeys(
        where, WIDTH
    )
    found = made.activations_at(list(where), "held_out", rows)
    ours = dict(zip(where, found, strict=True))
    for hook, theirs in values(model, tokens, where).items():
        assert_close(ours[hook], flat(theirs))
    states = hidden_states(model, tokens)
    for layer in range(LAYERS):
        assert_close(ours[f"blocks.{layer}.hook_resid_pre"], flat(states[layer]))
        if layer + 1 < LAYERS:
            assert_close(ours[f"blocks.{layer}.hook_resid_post"], flat(states[layer + 1]))


@EVERY
def test_the_stream_is_the_sum_of_its_parts(name: str, folders: dict[str, Path]) -> None:
    """What TransformerLens calls the outputs is what the blocks add, after norms if any."""
    made = target(folders[name], POST)
    kinds = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    hooks = [f"blocks.1.hook_{kind}" for kind in kinds]
    for hook in hooks:
        assert made.beside(hook)
    before, attn, mlp, after = made.activations_at(hooks, "held_out", torch.arange(12))
    assert_close(before + attn + mlp, after)
    for part in (attn, mlp):
        assert far_apart(after - part, after)


@EVERY
@WAYS
def test_the_last_blocks_stream_is_not_normed(
    name: str, way: type, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_way(way, monkeypatch)
    model, data = reference(folders[name]), Drawn()
    made = target(folders[name], f"blocks.{LAYERS - 1}.hook_resid_post", data)
    assert isinstance(made.passes, way)
    tokens = data.tokens(made)
    expected = values(model, tokens, {"last": (FAMILIES[name].norm, "in")})["last"]
    acts = made.activations("held_out", torch.arange(12))
    assert_close(acts, flat(expected))
    assert far_apart(acts, flat(hidden_states(model, tokens)[-1]))


@WAYS
def test_a_parallel_block_has_no_stream_in_between(
    way: type, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_way(way, monkeypatch)
    with pytest.raises(ConfigError, match=r"^target_model\.hook is .*has none such") as refused:
        target(folders["pythia"], "blocks.1.hook_resid_mid")
    assert "\n" not in str(refused.value)
    assert "'blocks.1.hook_resid_pre'" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("gemma2", "attn_logit_softcapping", None),
        ("gemma2", "final_logit_softcapping", None),
        ("gemma2", "sliding_window", 300),
        ("gemma3", "sliding_window", 300),
        ("qwen2", "sliding_window", 300),
    ],
)
def test_what_sets_a_family_apart_matters(
    name: str, option: str, value: Any, folders: dict[str, Path]
) -> None:
    """The tests here would see a way of running the model that leaves it out."""
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(
        folders[name], attn_implementation="eager", dtype=torch.float32, **{option: value}
    )
    data = Drawn()
    tokens = torch.from_numpy(
        data.rows("held_out", AutoTokenizer.from_pretrained(folders[name])).ids
    )
    with torch.no_grad():
        logits = [
            model(input_ids=tokens.long()).logits for model in (reference(folders[name]), other)
        ]
    assert far_apart(*logits)


@EVERY
def test_faster_attention_computes_the_same(name: str, folders: dict[str, Path]) -> None:
    """A context far longer than the sliding windows, with whatever attention is taken."""
    data = Drawn(context=300, train=2, held_out=3)
    made = target(folders[name], POST, data, rows_per_forward=2)
    assert isinstance(made.passes, Plain)
    eager = {"gemma2"}  # whose scores are capped
    taken = made.passes.model.config._attn_implementation
    assert taken == ("eager" if name in eager else "sdpa")
    tokens, model = data.tokens(made), reference(folders[name])
    assert model.config._attn_implementation == "eager"
    acts = made.activations("held_out", torch.arange(3))
    assert_close(acts, flat(hidden_states(model, tokens)[2]))
    with torch.no_grad():
        expected = naive_ce(model(input_ids=tokens).logits, tokens)
        found = made.spliced_losses("held_out", torch.arange(3), torch.clone).ce
    assert_close(found.double(), expected)


# --- All names -----------------------------------------------------------------------------


NAMES = (
    *("embed.hook_out", "ln_final.hook_in", "ln_final.hook_out", "unembed.hook_out"),
    *("blocks.1.hook_in", "blocks.1.hook_out", "blocks.1.attn.hook_z", "blocks.1.ln1.hook_out"),
    *("blocks.1.mlp.hook_pre", "blocks.1.mlp.hook_post", "blocks.1.ln2.hook_in"),
)


@EVERY
def test_every_name_means_what_transformer_lens_means(name: str, folders: dict[str, Path]) -> None:
    """A contract: where a plain module is looked at, the bridge has the same value."""
    data = Drawn(held_out=4)
    made = target(folders[name], POST, data)
    assert isinstance(made.passes, Plain)
    bridge = booted(folders[name])
    tokens = data.tokens(made)
    with torch.inference_mode():
        _, cache = bridge.run_with_cache(tokens)
    names = [hook for hook in cache if hook.startswith("blocks.1.") or "blocks" not in hook]
    compared, refused = list[str](), list[str]()
    for hook in names:
        try:
            if made.beside(hook):
                compared.append(hook)
        except ConfigError:
            refused.append(hook)
    found = made.activations_at(compared, "held_out", torch.arange(4))
    for hook, acts in zip(compared, found, strict=True):
        assert_close(acts, flat(cache[hook]))
    # Hugging Face looks positions up once for all rows, which is no activation of each.
    assert {hook for hook in refused if cache[hook].shape[2:] == (WIDTH,)} <= {"pos_embed.hook_out"}
    assert {*NAMES, *places(name, 1)} <= {*compared}
    assert len(compared) >= (27 if name in ("gpt2", "pythia") else 40)


@EVERY
def test_a_hook_that_only_the_bridge_has(name: str, folders: dict[str, Path]) -> None:
    """Inside a norm; one target model cannot show it beside a plain one."""
    data, hook = Drawn(held_out=4), "blocks.1.ln1.hook_normalized"
    made = target(folders[name], hook, data)
    assert isinstance(made.passes, Bridged)
    assert target(folders[name], POST).beside(hook) is None
    with torch.inference_mode():
        _, cache = booted(folders[name]).run_with_cache(data.tokens(made))
    assert_close(made.activations("held_out", torch.arange(4)), flat(cache[hook]))
    beside = made.beside(POST)
    assert beside is not None
    both = made.activations_at([hook, POST], "held_out", torch.arange(4))
    assert_close(both[1], flat(cache[POST]))
    assert torch.equal(both[0], made.activations("held_out", torch.arange(4)))
    assert torch.equal(both[1], beside.activations("held_out", torch.arange(4)))


def booted(folder: Path, compatibility_mode: bool = False) -> Any:
    """TransformerLens' bridge, made as its manual says."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge: Any = TransformerBridge.boot_transformers(str(folder), device="cpu")
    if compatibility_mode:
        bridge.enable_compatibility_mode(disable_warnings=True)
    return bridge.eval()


def by_way(way: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let target models run the bridge even where plain modules would do."""
    if way is Bridged:
        monkeypatch.setattr(loading.Loader, "has", Mock(return_value=False))


# --- Losses --------------------------------------------------------------------------------


def naive_ce(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of each token but BOS and the one that only BOS predicts."""
    log_probs = F.log_softmax(logits.double(), dim=-1)
    return -log_probs[:, 1:-1].gather(-1, tokens[:, 2:, None]).squeeze(-1)


def rotated(acts: Tensor) -> Tensor:
    """Another activation, of about the same size."""
    generator = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    return acts @ turn + 0.1


@EVERY
@WAYS
def test_splices_do_what_they_do_in_hugging_faces_model(
    name: str, way: type, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_way(way, monkeypatch)
    model, data, rows = reference(folders[name]), Drawn(held_out=3), torch.arange(3)
    where = places(name, 1)
    made = target(folders[name], POST, data)
    assert isinstance(made.passes, way)
    tokens = data.tokens(made)

    def spliced(hook: str, acts: Tensor) -> Tensor:
        del hook
        return torch.cat([acts[:, :1], rotated(acts[:, 1:])], dim=1)

    with torch.no_grad():
        clean = model(input_ids=tokens).logits
        logits = made.passes.logits(tokens, None)[:, 1:-1]
        unspliced = -torch.stack([row.log_softmax(-1) for row in logits])
        unspliced = unspliced.gather(-1, tokens[:, 2:, None]).squeeze(-1)
    for hook, place in where.items():
        other = made.beside(hook)
        assert other is not None
        with torch.no_grad():
            same, zero, turned = (
                other.spliced_losses("held_out", rows, splice)
                for splice in (torch.clone, torch.zeros_like, rotated)
            )
        assert_close(same.ce.double(), naive_ce(clean, tokens))
        assert torch.equal(same.kl, torch.zeros_like(same.kl))
        assert (zero.ce - same.ce).abs().mean() > 0.01 and zero.kl.mean() > 0.01
        logits = run_with(model, tokens, {hook: place}, spliced)
        assert_close(turned.ce.double(), naive_ce(logits, tokens))
        assert far_apart(turned.ce, same.ce)
        assert torch.equal(same.ce, unspliced)


@EVERY
def test_a_splice_where_only_the_bridge_can(name: str, folders: dict[str, Path]) -> None:
    made = target(folders[name], "hook_embed", Drawn(held_out=4))
    assert isinstance(made.passes, Bridged)
    rows = torch.arange(4)
    with torch.no_grad():
        same, zero = (
            made.spliced_losses("held_out", rows, splice)
            for splice in (torch.clone, torch.zeros_like)
        )
    assert torch.equal(same.kl, torch.zeros_like(same.kl))
    assert (zero.ce - same.ce).abs().mean() > 0.01


# --- Precision and TransformerLens' folding ------------------------------------------------


@EVERY
@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 0.06), ("float16", 0.008)])
def test_half_precision_is_nearly_the_same(
    name: str, dtype: str, error: float, folders: dict[str, Path]
) -> None:
    data, rows = Drawn(context=12, train=2, held_out=2), torch.arange(2)
    exact, half = (target(folders[name], POST, data, dtype=d) for d in ("float32", dtype))
    assert half.description["model_dtype"] == dtype
    acts, near = (made.activations("held_out", rows) for made in (exact, half))
    assert near.dtype == torch.float32
    assert 1e-5 < (near - acts).norm() / acts.norm() < error
    with torch.no_grad():
        ce, near_ce = (
            made.spliced_losses("held_out", rows, torch.clone).ce for made in (exact, half)
        )
    assert near_ce.dtype == torch.float32
    assert 0 < (near_ce - ce).abs().mean() < 3 * error


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_weights_are_read_in_the_precision_asked_for(
    stored: torch.dtype, tmp_path: Path, folders: dict[str, Path]
) -> None:
    reference(folders["qwen3"]).to(stored).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folders["qwen3"]).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] in str(stored)
    data = Drawn(held_out=4)
    made = target(tmp_path, POST, data)
    expected = hidden_states(reference(tmp_path), data.tokens(made))[2]
    assert_close(made.activations("held_out", torch.arange(4)), flat(expected))


@WAYS
def test_auto_is_what_suits_the_device(
    way: type, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_way(way, monkeypatch)
    capabilities: list[tuple[dict[str, Any], torch.dtype]] = [
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
    ]
    for given, expected in capabilities:
        monkeypatch.setattr(torch.cpu, "get_capabilities", Mock(return_value=given))
        assert loading.dtype_for("auto", CPU) == expected
        made = target(folders["llama"], POST, Drawn(context=8, train=1, held_out=1), dtype="auto")
        assert isinstance(made.passes, Plain | Bridged)
        model: Any = made.passes.model if isinstance(made.passes, Plain) else made.passes.bridge
        assert {parameter.dtype for parameter in model.parameters()} == {expected}
        assert made.description["model_dtype"] == str(expected).removeprefix("torch.")


@EVERY
def test_compatibility_mode_is_transformer_lens_own(name: str, folders: dict[str, Path]) -> None:
    data, rows = Drawn(held_out=4), torch.arange(4)
    plain, made = (
        target(folders[name], POST, data, compatibility_mode=mode) for mode in (False, True)
    )
    assert isinstance(made.passes, Bridged)
    with torch.inference_mode():
        _, cache = booted(folders[name], compatibility_mode=True).run_with_cache(data.tokens(made))
    acts = made.activations("held_out", rows)
    assert_close(acts, flat(cache[POST]))
    if name in ("gpt2", "pythia"):  # there is nothing to centre where norms subtract no mean
        assert far_apart(acts, plain.activations("held_out", rows))
        assert acts.mean(1).abs().max() < 1e-4 * acts.abs().max()
    with torch.no_grad():
        ce, theirs = (
            made.spliced_losses("held_out", rows, torch.clone).ce for made in (plain, made)
        )
    assert_close(theirs, ce, relative=1e-3)  # what the model predicts is the same


def test_compatibility_mode_is_part_of_what_a_run_is() -> None:
    runs = [
        small_run(Path("unused"), f"target_model.compatibility_mode={mode}").config
        for mode in ("false", "true")
    ]
    for hashed in (identity, stream_identity, pass_identity):
        assert hashed(runs[0]) != hashed(runs[1])


# --- Tokenizers, revisions -----------------------------------------------------------------


class Watching(Drawn):
    """Remembers the tokenizer that it was given."""

    given: Any = None

    def rows(self, split: Any, tokenizer: Any) -> Any:
        self.given = tokenizer
        return super().rows(split, tokenizer)


@EVERY
@WAYS
def test_tokenizers_are_as_they_were_saved(
    name: str, way: type, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_way(way, monkeypatch)
    data = Watching(context=8, train=2, held_out=2)
    made = target(folders[name], POST, data)
    assert isinstance(made.passes, way)
    saved: Any = AutoTokenizer.from_pretrained(folders[name])
    assert tokenizer_hash(data.given) == tokenizer_hash(saved)
    assert data.given.special_tokens_map == saved.special_tokens_map == FAMILIES[name].special
    for option in ("padding_side", "truncation_side", "model_max_length", "name_or_path"):
        assert getattr(data.given, option) == getattr(saved, option)
    phrase = text(1, 9)
    assert data.given(phrase)["input_ids"] == saved(phrase)["input_ids"]
    special = FAMILIES[name].special
    expected = saved.convert_tokens_to_ids(special.get("bos_token", special["eos_token"]))
    assert first_token(saved) == expected
    assert (made.tokens["train"].ids[:, 0] == expected).all()


def test_a_revision_reaches_every_loader(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoConfig, AutoModelForCausalLM

    asked: dict[str, Any] = {}

    def watch(owner: Any, method: str) -> None:
        load = getattr(owner, method)

        def loaded(*words: Any, **named: Any) -> Any:
            asked.setdefault(owner.__name__, named.get("revision"))
            return load(*words, **named)

        monkeypatch.setattr(owner, method, loaded)

    loaders = (AutoConfig, AutoTokenizer, AutoModelForCausalLM)
    for loader in loaders:
        watch(loader, "from_pretrained")
    watch(TransformerBridge, "boot_transformers")
    for compatibility_mode in (False, True):
        made = target(
            folders["gpt2"], POST, revision="step3", compatibility_mode=compatibility_mode
        )
        assert made.description["model_revision"] == "step3"
    names = [loader.__name__ for loader in (*loaders, TransformerBridge)]
    assert asked == dict.fromkeys(names, "step3")


CACHED = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from tests.support.families import Drawn, target
from sae_sweeps.errors import ConfigError
found = {}
for revision in (None, "main", "step3", "b" * 40, "nowhere"):
    for mode in (False, True):
        try:
            made = target("some/model", "blocks.1.hook_resid_post", Drawn(), revision=revision,
                          compatibility_mode=mode)
            figure = made.activations("held_out", torch.arange(3)).double().sum().item()
        except ConfigError as error:
            figure = str(error)
        found[f"{revision} {mode}"] = figure
Path("found.json").write_text(json.dumps(found))
"""


def test_a_model_of_texts_and_images_is_one_of_texts(tmp_path: Path) -> None:
    images = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    images |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    ids: dict[str, Any] = {"boi_token_index": 5, "eoi_token_index": 6, "image_token_index": 7}
    texts = GEMMA | {"layer_types": KINDS}
    config = Gemma3Config(text_config=texts, vision_config=images, mm_tokens_per_image=1, **ids)
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    enliven(model)
    model.save_pretrained(tmp_path)
    tokenizer(FAMILIES["gemma3"]).save_pretrained(tmp_path)
    made, rows = target(tmp_path, POST), torch.arange(3)
    assert isinstance(made.passes, Plain) and made.has_loss
    tokens = made.tokens["train"][rows]
    with torch.no_grad():
        found = model(input_ids=tokens, output_hidden_states=True, use_cache=False)
        ce = made.spliced_losses("train", rows, torch.clone).ce
    assert_close(made.activations("train", rows), found.hidden_states[2][:, 1:].flatten(0, 1))
    expected = F.cross_entropy(found.logits[:, 1:-1].mT, tokens[:, 2:], reduction="none")
    assert_close(ce, expected)


@pytest.mark.slow
def test_revisions_come_from_the_hubs_cache_without_network(tmp_path: Path) -> None:
    hub = tmp_path / "hub" / "models--some--model"
    expected: dict[str, float] = {}
    for seed, (letter, ref) in enumerate((("a", "main"), ("b", "step3"))):
        folder = save("gpt2", hub / "snapshots" / (letter * 40))
        model = reference(folder)
        torch.manual_seed(seed)
        enliven(model)
        model.save_pretrained(folder)
        (hub / "refs").mkdir(exist_ok=True)
        (hub / "refs" / ref).write_text(letter * 40)
        made = target(folder, POST)
        expected[ref] = made.activations("held_out", torch.arange(3)).double().sum().item()
    assert expected["main"] != pytest.approx(expected["step3"], rel=0.01)
    python(["-c", CACHED, str(ROOT / "tests")], tmp_path, HF_HUB_CACHE=str(tmp_path / "hub"))
    found = json.loads((tmp_path / "found.json").read_text())
    for asked, ref in (("None", "main"), ("main", "main"), ("step3", "step3"), ("b" * 40, "step3")):
        assert found[f"{asked} False"] == pytest.approx(expected[ref], rel=1e-6)
        assert found[f"{asked} True"] != pytest.approx(expected[ref], rel=1e-6)
    assert found["None True"] == found["main True"] != found["step3 True"]
    assert found["step3 True"] == found["b" * 40 + " True"]
    for mode in (False, True):
        assert found[f"nowhere {mode}"].startswith("target_model.model is 'some/model': ")
        assert "\n" not in found[f"nowhere {mode}"]


def python(words: list[str], cwd: Path, **env: str) -> None:
    """Run the test's own interpreter on the checkout, without a hub."""
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | env
    line = [sys.executable, *words]
    done = subprocess.run(
        line, cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr + done.stdout


# --- Sweeps --------------------------------------------------------------------------------

TINY = [
    *("-m", "tracking=off", "hydra.launcher.progress=off", "d_sae=64", "device=cpu", "threads=1"),
    *("stream.batch_tokens=256", "stream.chunk_tokens=1024", "stream.calibration_tokens=512"),
    *("training.tokens=8192", "evaluation.tokens=1024", "evaluation.ce_tokens=512"),
    *("name=tiny", "target_model=transformer_lens", f"target_model.hook={POST}"),
    *("data=text", "data.path=text", "data.context_tokens=32"),
]


@pytest.mark.slow
@EVERY
def test_a_sweep_over_a_family(name: str, launches: Launches, tmp_path: Path) -> None:
    pages = [text(page, 400) for page in range(60)]
    (tmp_path / "text").mkdir()
    for page, written in enumerate(pages):
        (tmp_path / "text" / f"{page}.txt").write_text(written)
    teach(save(name, tmp_path / "model"), pages)
    words = [*TINY, f"target_model.model={tmp_path / 'model'}", "method=topk,relu", "k=4,8"]
    cache = {"SAE_SWEEPS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    launch = launches.run(tmp_path, *words, env=environment() | cache)
    assert launch.code == 0, launch.err
    folder = tmp_path / "outputs" / "tiny"
    results = [json.loads(path.read_text()) for path in folder.glob("runs/*/result.json")]
    assert len(results) == 4 and not list(folder.glob("runs/*/failed.json"))
    assert len({result["run"] for result in results}) == 4
    assert len({result["metrics"]["ce_clean"] for result in results}) == 1
    for result in results:
        figures = result["metrics"]
        assert figures["ce"] == pytest.approx(figures["ce_clean"] + figures["delta_ce"])
        gap = figures["ce_zero"] - figures["ce_clean"]
        assert figures["ce_recovered"] == pytest.approx(1 - figures["delta_ce"] / gap, rel=1e-6)
        assert 0 < figures["fvu"] < 1 and figures["l0"] > 0

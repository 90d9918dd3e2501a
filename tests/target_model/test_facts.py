"""What a model's config.json tells of its size, against the model itself, on the meta device."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_sweeps.target_model import facts

KINDS = (
    *("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon", "mpt", "phi", "codegen"),
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2"),
    *("stablelm", "starcoder2", "gpt_bigcode", "smollm3", "granite", "cohere"),
)


def node(folder: Path, hook: str = "blocks.1.hook_resid_post") -> dict[str, Any]:
    return {"model": str(folder), "revision": None, "dtype": "float32", "hook": hook}


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_counted_as_the_model_has_them(kind: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(tmp_path)
    found = facts.parameters(node(tmp_path))
    assert found is not None
    true = sum(parameter.numel() for parameter in model.parameters())
    assert found.stored == pytest.approx(true, rel=2e-3)
    [blocks] = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ("h", "layers", "blocks")
    ]
    two = sum(p.numel() for block in list(blocks.children())[:2] for p in block.parameters())
    assert found.below == pytest.approx(two, rel=0.02)


def test_who_has_experts_is_not_counted(tmp_path: Path) -> None:
    known = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps({**known, "intermediate_size": 16}))
    assert facts.parameters(node(tmp_path)) is not None
    more = {**known, "intermediate_size": 16, "num_local_experts": 8}
    (tmp_path / "config.json").write_text(json.dumps(more))
    assert facts.parameters(node(tmp_path)) is None
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    assert facts.weight_bytes(node(tmp_path)) == 100


@pytest.mark.parametrize(
    ("hook", "blocks"),
    [
        *(("hook_embed", 0), ("blocks.0.hook_resid_pre", 0), ("blocks.2.hook_mlp_out", 3)),
        ("ln_final.hook_normalized", 4),
    ],
)
def test_a_pass_goes_no_deeper_than_the_hook(hook: str, blocks: int) -> None:
    of_model = {"model": "embedded", "revision": None, "dtype": "float32", "hook": hook}
    found = facts.parameters(of_model)
    assert found is not None
    assert found.below == blocks * 12 * 128**2
    assert found.passed == 4 * 12 * 128**2 + 4096 * 128


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "8", [8], None, 10**400])
@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads"])
def test_a_size_that_is_none_is_not_known(name: str, wrong: object, tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    known: dict[str, object] = {**sizes, "vocab_size": 9, "intermediate_size": 16}
    (tmp_path / "config.json").write_text(json.dumps({**known, name: wrong}))
    assert facts.parameters(node(tmp_path)) is None


NO_CONFIGS = ["[" * 10**5, "", "[]", "5", '"text"', "{", '{"text_config": [1]}']


@pytest.mark.parametrize("text", NO_CONFIGS, ids=range(len(NO_CONFIGS)))
def test_what_is_no_config_tells_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert facts.parameters(node(tmp_path)) is None and facts.width(node(tmp_path)) is None

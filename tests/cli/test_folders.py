"""Folders of models and texts that lack something: one line, as early as it can be known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_sweeps.embedded import MODEL
from sae_sweeps.target_model.judging import models_and_hooks_exist
from tests.support.commands import Trainer, refusal, run, trainer
from tests.support.launches import Launches, launches

__all__ = ["launches", "run", "trainer"]  # fixtures


# --- Before anything starts --------------------------------------------------------------

WHOLE = {"config.json": "{}", "model.safetensors": "", "tokenizer.json": "{}"}
MID = "blocks.0.hook_resid_mid"
BESIDE = "attention and MLP of './model' run side by side, with nothing in between; expected "


def typed(**config: object) -> dict[str, str]:
    """The files of a model with this config."""
    return WHOLE | {"config.json": json.dumps(config)}


@pytest.mark.parametrize(
    ("files", "hook", "complaint"),
    [
        (WHOLE, MID, None),
        ({}, MID, "the folder has no config.json."),
        ({"config.json": "{}"}, MID, "the folder has no model.safetensors: save the model there"),
        (
            {name: text for name, text in WHOLE.items() if name != "tokenizer.json"},
            *(MID, "the folder has no tokenizer.json: save the tokenizer beside the model with"),
        ),
        (typed(model_type="gptj"), MID, BESIDE + "blocks.0.hook_resid_pre or hook_resid_post."),
        (typed(model_type="gptj"), "blocks.0.hook_resid_pre", None),
        (typed(use_parallel_residual=True), MID, BESIDE),
        (typed(use_parallel_residual=False), MID, None),
        (typed(parallel_attn=True), MID, BESIDE),
    ],
)
def test_a_folder_is_judged_before_anything_starts(
    files: dict[str, str],
    hook: str,
    complaint: str | None,
    run: Callable[..., int],
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "model").mkdir()
    for name, text in files.items():
        (tmp_path / "model" / name).write_text(text)
    words = ["target_model=transformer_lens", "target_model.model=./model"]
    code = run(*words, f"target_model.hook={hook}")
    assert (code, len(trainer.runs)) == ((1, 0) if complaint else (0, 1))
    if complaint:
        assert complaint in refusal(capsys, tmp_path)


@pytest.mark.parametrize(
    ("name", "config", "flags"),
    [
        ("GPTJForCausalLM", "GPTJConfig", {}),
        ("PhiForCausalLM", "PhiConfig", {}),
        ("CohereForCausalLM", "CohereConfig", {}),
        ("Cohere2ForCausalLM", "Cohere2Config", {}),
        ("CodeGenForCausalLM", "CodeGenConfig", {}),
        *(("GPTNeoXForCausalLM", "GPTNeoXConfig", {"use_parallel_residual": v}) for v in (0, 1)),
        *(("FalconForCausalLM", "FalconConfig", {"parallel_attn": v}) for v in (0, 1)),
        *(("StableLmForCausalLM", "StableLmConfig", {"use_parallel_residual": v}) for v in (0, 1)),
        ("LlamaForCausalLM", "LlamaConfig", {}),
        ("GPT2LMHeadModel", "GPT2Config", {}),
    ],
)
@pytest.mark.slow
def test_blocks_without_a_middle_are_those_of_transformer_lens(
    name: str, config: str, flags: dict[str, int], tmp_path: Path
) -> None:
    import transformers
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf

    made = getattr(transformers, config)(**{flag: bool(value) for flag, value in flags.items()})
    made.architectures = [name]
    made.save_pretrained(tmp_path)
    given = build_bridge_config_from_hf(made, name, str(tmp_path), torch.float32)
    adapter = ArchitectureAdapterFactory.select_architecture_adapter(given)
    between = "hook_resid_mid" in (adapter.component_mapping or {})["blocks"].hook_aliases
    for file in ("model.safetensors", "tokenizer.json"):
        (tmp_path / file).write_text("{}")
    node = {"model": str(tmp_path), "hook": MID, "revision": None}
    assert (list(models_and_hooks_exist({"target_model": node})) == []) == between


@pytest.mark.slow
def test_one_document_cannot_be_split(
    run: Callable[..., int], trainer: Trainer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "one.txt").write_text("one text\n" * 10_000)
    assert run("data=text", "data.path=one.txt") == 1
    line = refusal(capsys, tmp_path)
    assert "data.sample_by is 'document', and 'one.txt' is a single one" in line
    assert "expected paragraph or line, or more files." in line
    assert run("data=text", "data.path=one.txt", "data.sample_by=paragraph") == 0
    (tmp_path / "one.txt").rename(tmp_path / "one.csv")  # a table holds many
    assert run("data=text", "data.path=one.csv", "name=table") == 0
    (tmp_path / "two.txt").write_text("another")
    (tmp_path / "one.csv").rename(tmp_path / "one.txt")
    assert run("data=text", "data.path='*.txt'", "name=two") == 0
    assert len(trainer.runs) == 3


# --- What only loading can tell ------------------------------------------------------------

SIZES: dict[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 4096},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random models, most with something wrong."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    place = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SIZES))
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    bare: Any = PreTrainedTokenizerFast(tokenizer_file=str(MODEL / "tokenizer.json"))
    unpadded: Any = PreTrainedTokenizerFast(
        tokenizer_file=str(MODEL / "tokenizer.json"), bos_token=tokenizer.bos_token
    )

    def save(name: str, of: Any = tokenizer) -> None:
        model.save_pretrained(place / name)
        of.save_pretrained(place / name)

    save("bare", bare)
    save("unpadded", unpadded)
    # Finite in bfloat16; more than float16 can hold, which ends at 65,504.
    embedding = model.model.embed_tokens.weight.data
    embedding *= 1e5 / embedding.abs().max()
    save("large")
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = torch.nan
    save("damaged")
    return place


SMALL = [
    *("k=4", "d_sae=64", "device=cpu", "hydra.launcher.progress=off", "stream.batch_tokens=256"),
    *("stream.chunk_tokens=1024", "stream.calibration_tokens=1024", "evaluation.ce_tokens=256"),
    *("training.dead_window_tokens=512", "name=one", "tracking=off"),
]
FEW = ["training.tokens=1024", "evaluation.tokens=1024"]
TEXT = ["data=text", "data.sample_by=line", "data.held_out_share=0.4"]
NOT_FINITE = "target_model: its activations are not finite on "

LOADED: list[tuple[str | None, str, list[str]]] = [
    (NOT_FINITE, "damaged", FEW),
    (NOT_FINITE, "large", [*FEW, "target_model.dtype=float16"]),
    (None, "large", [*FEW, "target_model.dtype=bfloat16"]),
    (None, "unpadded", [*FEW, *TEXT, "data.path=few.txt"]),
    (
        *("target_model.model: its tokenizer has neither a BOS nor an EOS token.", "bare"),
        [*FEW, *TEXT, "data.path=few.txt"],
    ),
    (
        *("data.column is 'text', expected one of 'txt', 'n'. Did you mean 'txt'?", "unpadded"),
        [*FEW, *TEXT, "data.path=rows.jsonl"],
    ),
    ("documents hold no text.", "unpadded", [*FEW, *TEXT, "data.path=empty.txt"]),
    (
        *("set stream.repeat=true to go over them again.", "unpadded"),
        [*TEXT, "data.path=few.txt", "training.tokens=65536", "evaluation.tokens=1024"],
    ),
    (
        *(None, "unpadded"),
        [
            *(*TEXT, "data.path=few.txt", "training.tokens=65536", "evaluation.tokens=1024"),
            "stream.repeat=true",
        ],
    ),
    (
        *("evaluation.tokens is 65536: the data hold ", "unpadded"),
        [*TEXT, "data.path=few.txt", "training.tokens=1024", "evaluation.tokens=65536"],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(LOADED)))
def test_what_only_loading_can_tell_is_one_line(
    case: int, models: Path, launches: Launches, tmp_path: Path
) -> None:
    expected, model, words = LOADED[case]
    (tmp_path / "few.txt").write_text("\n".join(f"line {i} of a few" for i in range(800)))
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "rows.jsonl").write_text('{"txt": "a", "n": 1}\n')
    before = {file.name: file.read_bytes() for file in (models / model).iterdir()}
    lens = ["target_model=transformer_lens", f"target_model.model={models / model}"]
    lens += ["target_model.hook=blocks.1.hook_resid_post"]
    dtype = [] if "target_model.dtype" in str(words) else ["target_model.dtype=float32"]
    done = launches.run(tmp_path, *SMALL, *lens, *dtype, *words)
    told = ("data: pack", "target_model.dtype is 'float16': ")
    said = [line for line in done.err.splitlines() if not line.startswith(told)]
    if expected is None:
        assert done.code == 0, done.err
    else:
        assert done.code == 1 and len(said) == 1, done.err
        assert said[0].startswith("sae-sweeps: ") and expected in said[0]
        assert not (tmp_path / "outputs").exists()
    assert {file.name: file.read_bytes() for file in (models / model).iterdir()} == before

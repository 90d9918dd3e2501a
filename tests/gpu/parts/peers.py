"""Other libraries' own training steps, by their packages as released, on the same batches.

Data-set and logging packages, which they import and their steps do not use, are stubbed. Their
defaults stay but for Adam's learning rate and `k`; in bfloat16 where `autocast`, else as they are.
"""

import contextlib
import importlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.gpu.sizes import CONTEXT, LAYER, NAMES, Size

from .place import Place, main
from .stubs import stub

STUBBED = ("datasets", "wandb", "nnsight", "plotly", "plotly_express", "nltk", "babe")
LR = 3e-4
STEPS = 10**6
"""More than are made."""
SAE_LENS = {
    "topk": "TopKTrainingSAE",
    "mutual_choice": "BatchTopKTrainingSAE",
    "jumprelu": "JumpReLUTrainingSAE",
    "gated": "GatedTrainingSAE",
}
Step = Callable[[], object]


def measure(here: Place) -> None:
    """In bfloat16 first, TopK first; then the model's forward pass as SAELens has it."""
    stub(*STUBBED)
    if here.rehearsal:
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels are CUDA's
    for autocast in (True, False):
        for name in NAMES[:2]:
            for peer, make in PEERS.items():
                told(here, peer, "topk", make, name, autocast)
        with here.cell(peer="transformer_lens", autocast=autocast):
            forward(here, autocast)
    for autocast in (True, False):
        for method in list(SAE_LENS)[1:]:
            for name in NAMES[:2]:
                told(here, "sae_lens", method, sae_lens, name, autocast)


def told(here: Place, peer: str, method: str, make: Any, name: str, autocast: bool) -> None:
    """Tell of a step of a peer's."""
    about = {"peer": peer, "method": method, "size": name, "autocast": autocast}
    about["step"] = f"{peer} {method}, {'autocast' if autocast else 'its default'}"
    with here.cell(**about):
        size = here.sizes[name]
        step: Step = make(here, method, size, autocast, here.batch(size))
        ms = here.milliseconds(step)
        here.tell(**about, ms=ms, host_ms=here.host_milliseconds(step))


def sae_lens(here: Place, method: str, size: Size, autocast: bool, x: Tensor) -> Step:
    """`SAETrainer._train_step`."""
    package: Any = importlib.import_module("sae_lens")
    config: Any = importlib.import_module("sae_lens.config")
    training: Any = importlib.import_module("sae_lens.training.sae_trainer")
    kind, device = SAE_LENS[method], here.device.type
    k = {"k": size.k} if method in ("topk", "mutual_choice") else {}
    given = getattr(package, f"{kind}Config")(d_in=size.d_in, d_sae=size.d_sae, device=device, **k)
    sae = getattr(package, kind)(given)
    options = config.SAETrainerConfig(
        total_training_samples=STEPS * size.batch,
        train_batch_size_samples=size.batch,
        lr=LR,
        lr_end=LR,
        device=device,
        autocast=autocast,
    )
    trainer = training.SAETrainer(options, sae, iter([]))
    return lambda: trainer._train_step(sae, x)


def dictionary_learning(here: Place, method: str, size: Size, autocast: bool, x: Tensor) -> Step:
    """`TopKTrainer.update`."""
    assert method == "topk"
    module: Any = importlib.import_module("dictionary_learning.trainers.top_k")
    trainer = module.TopKTrainer(
        steps=STEPS,
        activation_dim=size.d_in,
        dict_size=size.d_sae,
        k=size.k,
        lr=LR,
        layer=0,
        lm_name="none",
        seed=0,
        device=here.device.type,
    )

    def step() -> None:
        with autocasting(here, autocast):
            trainer.update(1, x)

    return step


def sparsify(here: Place, method: str, size: Size, autocast: bool, x: Tensor) -> Step:
    """`SparseCoder`, its loss and its decoder's norm as its trainer has them, with Adam."""
    assert method == "topk"
    package: Any = importlib.import_module("sparsify")
    given = package.SparseCoderConfig(num_latents=size.d_sae, k=size.k)
    sae = package.SparseCoder(size.d_in, given, device=here.device.type)
    adam = torch.optim.Adam(sae.parameters(), lr=LR)

    def step() -> None:
        with autocasting(here, autocast):
            out = sae(x)
        out.fvu.backward()
        if sae.cfg.normalize_decoder:
            sae.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        if sae.cfg.normalize_decoder:
            sae.set_decoder_norm_to_unit_norm()

    return step


PEERS = {"sae_lens": sae_lens, "dictionary_learning": dictionary_learning, "sparsify": sparsify}


def autocasting(here: Place, autocast: bool) -> contextlib.AbstractContextManager[object]:
    """bfloat16, or nothing."""
    return torch.autocast(here.device.type, torch.bfloat16, enabled=autocast)


def forward(here: Place, autocast: bool) -> None:
    """TransformerLens' pass up to the hook, as SAELens' store makes it, of random weights."""
    lens: Any = importlib.import_module("transformer_lens")
    name, small = NAMES[0], here.sizes[NAMES[0]]
    layers, vocabulary = (1, 64) if here.rehearsal else (LAYER + 1, 50_257)
    context = 16 if here.rehearsal else CONTEXT
    config = lens.HookedTransformerConfig(
        n_layers=layers,
        d_model=small.d_in,
        n_ctx=1024,
        d_head=small.d_in // 2 if here.rehearsal else 64,
        n_heads=2 if here.rehearsal else 12,
        d_vocab=vocabulary,
        act_fn="gelu_new",
        normalization_type="LN",
        dtype=torch.bfloat16 if autocast else torch.float32,
        device=here.device.type,
        seed=0,
    )
    model = lens.HookedTransformer(config)
    hook = f"blocks.{layers - 1}.hook_resid_post"
    tokens = torch.randint(vocabulary, (small.batch // context, context), device=here.device)

    @torch.no_grad()
    def work() -> None:
        model.run_with_cache(tokens, names_filter=[hook], stop_at_layer=layers, prepend_bos=False)

    ms = here.milliseconds(work)
    told = {"peer": "transformer_lens", "method": "forward", "size": name, "autocast": autocast}
    told["step"] = f"TransformerLens' forward, {'bfloat16' if autocast else 'float32'}"
    here.tell(**told, ms=ms, host_ms=here.host_milliseconds(work))


if __name__ == "__main__":
    main(measure)

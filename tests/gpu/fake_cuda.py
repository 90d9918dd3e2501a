"""Fake CUDA tensors on a machine without CUDA: shapes, dtypes and devices' rules, but no numbers.

PyTorch's own fake tensors, on a device that `guard.cpp` pretends is there. What cannot be faked is
replaced: operators without a fake form, and the numbers that the host reads.
"""

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

HERE = Path(__file__).parent


def build(folder: Path) -> Path:
    """Compile the guard for the torch that is installed, which is not imported."""
    spec = find_spec("torch")
    assert spec and spec.origin
    torch, library = Path(spec.origin).parent, folder / "guard.so"
    command = [
        *("g++", "-shared", "-fPIC", "-std=c++20", f"-I{torch / 'include'}"),
        *(str(HERE / "guard.cpp"), f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"),
        *(f"-Wl,-rpath,{torch / 'lib'}", "-o", str(library)),
    ]
    subprocess.run(command, check=True)
    return library


def ask(guard: Path, module: str, *words: str) -> list[Any]:
    """Run a module of this folder in a process with the guard; the JSON of each line it prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.gpu.{module}", *words],
        cwd=HERE.parent.parent,
        env={**os.environ, "LD_PRELOAD": str(guard), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-4_000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def fake_cuda() -> Generator[Any]:
    """Within it tensors are fake, and there is a CUDA device `cuda:0` for them."""
    from torch import Tensor
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.nn import Parameter

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as opened:
        opened.enter_context(mode)
        for name, value in (
            ("torch.cuda.is_bf16_supported", True),
            ("torch.cuda.amp.common.amp_definitely_not_available", False),
            ("torch.cuda.current_device", 0),
            ("torch.cuda.Event", MagicMock()),
            ("torch.cuda.current_stream", MagicMock()),
        ):
            opened.enter_context(patch(name, return_value=value))
        # Lists of them are worked off together, as of tensors that are real.
        kinds = "torch.utils._foreach_utils._foreach_supported_types"
        opened.enter_context(patch(kinds, [Tensor, Parameter, FakeTensor]))
        opened.enter_context(patch("torch.nn.Module.to", _moved))
        opened.enter_context(patch("torch.Tensor.pin_memory", _pinned))
        yield mode


def _pinned(tensor: Any) -> Any:
    """As `Tensor.pin_memory`: from here a device can copy while the host goes on."""
    tensor.pinned = True
    return tensor


def _moved(module: Any, device: Any) -> Any:
    """As `Module.to`, which gives parameters other data; fake ones have none."""
    from torch.nn import Parameter

    for part in module.modules():
        for name, parameter in part._parameters.items():
            part._parameters[name] = Parameter(parameter.detach().to(device))
        for name, buffer in part._buffers.items():
            part._buffers[name] = buffer.to(device)
    return module

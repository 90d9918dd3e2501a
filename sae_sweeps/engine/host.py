"""Between host and device, without one waiting for the other."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class HostNumber:
    """A whole number on its way to the host.

    On CUDA the copy is queued behind what the device has to do so far, and read when that is done:
    whoever asks early, queues other work, and reads late, waits for nothing, and the device never
    runs out of work meanwhile.
    """

    def __init__(self, number: Int[Tensor, ""]) -> None:
        self._number, self._done = number, None
        if number.device.type == "cuda":
            self._number = torch.empty_like(number, device="cpu", pin_memory=True)
            self._number.copy_(number, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(number.device))

    def get(self) -> int:
        """The number; waits for what was queued before it was asked for."""
        if self._done is not None:
            self._done.synchronize()
        return int(self._number)


def places(mask: Bool[Tensor, " n"], count: HostNumber) -> Int[Tensor, " true"]:
    """Where a mask is true, of which it is known how often that is."""
    if mask.device.type == "cuda":
        return torch.nonzero_static(mask, size=count.get()).squeeze(1)
    return mask.nonzero().squeeze(1)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, which is on the host, on a device, for which the host does not wait."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)

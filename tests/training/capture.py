"""Whether a training step could be captured in a CUDA graph, found out without a GPU.

The step runs on the device "meta", whose tensors have shapes but no values. What a capture does not
allow is what makes the host wait for the device, or copies between the two: such calls raise here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
WAITING = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select"}
COPYING = {torch.tensor, torch.as_tensor}  # a Python number goes to the device by a copy


class Uncapturable(AssertionError):
    """A call that a CUDA graph cannot hold."""


class NoCopies(TorchFunctionMode):
    """Raise where a tensor on the device is made of Python values."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in COPYING and kwargs.get("device") is not None:
            raise Uncapturable(f"{func.__name__} copies a Python value to the device")
        return func(*args, **kwargs)


class OnDeviceOnly(TorchDispatchMode):
    """Raise at operators that wait for the device or have tensors on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().split("::")[-1].split(".")[0]
        if name in WAITING:
            raise Uncapturable(f"{name} waits for the device")
        result = func(*args, **kwargs)
        tensors = [
            part for part in tree_leaves((args, kwargs, result)) if isinstance(part, torch.Tensor)
        ]
        # Numbers that an operator takes beside tensors are tensors of no dimension on the host.
        copies = name in {"_to_copy", "copy_", "lift_fresh"}
        if any(part.device != DEVICE and (copies or part.ndim) for part in tensors):
            raise Uncapturable(f"{name} has a tensor on the host")
        return result


@contextmanager
def capturing() -> Iterator[None]:
    """A block that raises Uncapturable where a capture would fail."""
    with NoCopies(), OnDeviceOnly():
        yield

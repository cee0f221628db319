"""An accelerator that is not there: tensors sent to it compute on the CPU, but mix with no other and are no arrays."""

from __future__ import annotations

import contextlib

import torch  # noqa: TID253
from torch.overrides import TorchFunctionMode  # noqa: TID253

NAME = "cuda"


class Far(torch.Tensor):
    """A tensor on the device; whatever is computed from it is one, too."""


class PretendedDevice(TorchFunctionMode):
    """While it is active, torch has the device; `seen` are the functions called with tensors there."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.to and any(_is_device(value) for value in (*args[1:], kwargs.get("device"))):
            return args[0].as_subclass(Far)
        far = [isinstance(value, Far) for value in _tensors((args, kwargs)) if value.dim() > 0]
        if not any(far) and not (args and isinstance(args[0], Far)):
            return func(*args, **kwargs)
        if func == torch.Tensor.device.__get__:
            return torch.device(NAME)
        assert all(far), f"{func} mixes devices"
        assert func is not torch.Tensor.numpy, "a tensor on a device is no array"
        self.seen.add(getattr(func, "__name__", str(func)))
        with torch._C.DisableTorchFunctionSubclass() if func is torch.Tensor.cpu else contextlib.nullcontext():
            result = func(*args, **kwargs)
        return result.clone().as_subclass(torch.Tensor) if func is torch.Tensor.cpu else result


def _is_device(value):
    return value == NAME or (isinstance(value, torch.device) and value.type == NAME)


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))

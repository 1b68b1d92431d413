"""A GPU that is none: tensors say `cuda:0` while their values lie in the CPU's memory, and operands on different
devices are refused as CUDA refuses them. Values are real, so searches, loops and comparisons take their real paths.

PyTorch's FakeTensorMode has no values, and on a CPU build it ends with "not linked with support for cuda devices" at
the first `cuda` tensor that needs a gradient, `model.to("cuda")`: autograd asks the device for its stream.

A storage carries the mark `on_gpu`, so views, parameters, saved and detached tensors share it. `_Calls` answers what
Python asks (`.device`, `.to`, `device=`); `_Kernels` sees every kernel, those of backward passes too, checks its
operands and marks its results. Not pretended: rounding, kernels, memory, streams and more than one GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
T = torch.Tensor
DIFFERENT = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
_BETWEEN = {"aten::copy_", "aten::_to_copy"}  # kernels that take operands on both devices
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


def on_gpu(tensor: torch.Tensor) -> bool:
    return any(getattr(part.untyped_storage(), "on_gpu", False) for part in _parts(tensor))


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """A tensor's own parts: codes, scales and zeros where it is one of torchao's."""
    if not is_traceable_wrapper_subclass_type(type(tensor)):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]


def _leaves(values: Any, leaves: list | None = None) -> list:
    """What stands in nested arguments; PyTorch's own `tree_leaves` takes most of a kernel's time."""
    leaves = [] if leaves is None else leaves
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, list | tuple | dict):
            _leaves(value, leaves)
        elif isinstance(value, torch.Tensor):
            leaves += _parts(value)
        elif value is not None:
            leaves.append(value)
    return leaves


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in _leaves([values]) if isinstance(leaf, torch.Tensor)]


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _placed(result: Any, gpu: bool, sources: Any = ()) -> Any:
    """`result` on a device; a copy where that is another than its own, unless it was just made, of no `sources`."""
    if not isinstance(result, torch.Tensor) or result.is_meta or on_gpu(result) == gpu:
        return result
    if is_traceable_wrapper_subclass_type(type(result)):
        names, context = result.__tensor_flatten__()
        parts = {name: _placed(getattr(result, name), gpu, sources) for name in names}
        return type(result).__tensor_unflatten__(parts, context, result.shape, result.stride())
    if result.untyped_storage()._cdata in {source.untyped_storage()._cdata for source in _tensors(sources)}:
        result = result.clone()
    result.untyped_storage().on_gpu = gpu
    return result


class _Kernels(TorchDispatchMode):
    call: Any = ()  # the arguments or the device of the call that runs: where kernels without operands put results

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if wrapper := next(filter(is_traceable_wrapper_subclass_type, types), None):  # torchao's
            with self, _Calls(self):
                return wrapper.__torch_dispatch__(func, types, args, kwargs)
        leaves = _leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not leaf.is_meta]
        gpu = self._common(func, args, kwargs, tensors) if tensors else self._asked()
        if gpu and any(isinstance(leaf, torch.Generator) for leaf in leaves):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        result = func(*args, **kwargs)
        known = {tensor.untyped_storage()._cdata for tensor in tensors}
        for tensor in _tensors(result):
            if not tensor.is_meta and tensor.untyped_storage()._cdata not in known:
                tensor.untyped_storage().on_gpu = gpu
        return result

    def _asked(self) -> bool:
        return _is_gpu(self.call) if isinstance(self.call, torch.device) else any(map(on_gpu, _tensors(self.call)))

    @staticmethod
    def _common(func, args: tuple, kwargs: dict, tensors: list[torch.Tensor]) -> bool:
        """Whether the operands lie on the GPU. Raises RuntimeError for operands on both devices, as CUDA does."""
        name = func._schema.name
        if name in _BETWEEN or len({on_gpu(tensor) for tensor in tensors}) == 1:
            return on_gpu(tensors[0])
        written = [kwargs.get("out"), args[0] if name.endswith("_") else None]
        indices = args[1] if name in _INDEXING and on_gpu(args[0]) else []  # they may lie on the CPU
        scalars = name in _INDEXING or torch.Tag.pointwise in func.tags  # a number that is read may lie on the CPU
        for tensor in tensors:
            read = not any(tensor is each for each in written)
            if not (on_gpu(tensor) or scalars and read and tensor.ndim == 0 or any(tensor is each for each in indices)):
                raise RuntimeError(f"{DIFFERENT} (in {name})")
        return True


class _Calls(TorchFunctionMode):
    def __init__(self, kernels: _Kernels) -> None:
        super().__init__()
        self.kernels = kernels

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, first = dict(kwargs or {}), args[0] if args else None
        if func == T.device.__get__:
            return GPU if on_gpu(first) else func(first)
        if func == T.is_cuda.__get__:
            return on_gpu(first)
        if func in (T.numpy, T.__array__) and on_gpu(first):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor")
        if func is T.cpu:
            return _placed(first, False, args)
        if func is T.to:
            return self._to(first, args[1:], kwargs)
        if func is T.__deepcopy__:
            return _placed(func(*args), on_gpu(first))
        before, device = self.kernels.call, kwargs.get("device")
        if _is_gpu(device):
            kwargs["device"] = CPU
        try:
            self.kernels.call = (args, kwargs) if device is None else torch.device(device)
            result = self._run(func, types, args, kwargs)
        finally:
            self.kernels.call = before
        return result if device is None else _placed(result, _is_gpu(device), args)

    def _run(self, func, types, args, kwargs):
        for kind in types:
            if is_traceable_wrapper_subclass_type(kind) and torch._C._is_torch_function_enabled():
                with self:
                    return kind.__torch_function__(func, types, args, kwargs)
        return func(*args, **kwargs)

    def _to(self, tensor: torch.Tensor, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
        """`Tensor.to`: the devices are ours, everything else is PyTorch's."""
        gpu, rest = on_gpu(tensor), []
        for value in (*args, *(kwargs.pop(name) for name in ("device", "other") if kwargs.get(name) is not None)):
            if isinstance(value, torch.Tensor):
                gpu = on_gpu(value)
                rest.append(value.dtype)
            elif isinstance(value, str | int | torch.device) and not isinstance(value, bool):
                gpu = _is_gpu(value)
                rest += [] if torch.device(value).type in ("cuda", "cpu") else [value]
            elif value is not None and not isinstance(value, bool):  # non_blocking changes nothing here
                rest.append(value)
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        return _placed(T.to(tensor, *rest, **kwargs) if rest or kwargs else tensor, gpu, [tensor])


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **options: Any) -> None:
        super().__init__("cpu", *args, **options)


STAND_INS = {
    "is_available": True,
    "device_count": 1,
    "get_device_name": "a pretended GPU",
    "get_device_capability": (9, 0),
    "get_device_properties": SimpleNamespace(total_memory=80 * 10**9),
    "memory_allocated": 0,
    "max_memory_allocated": 1,
    "reset_peak_memory_stats": None,
    "set_per_process_memory_fraction": None,
    "synchronize": None,
    "empty_cache": None,
}


@contextmanager
def pretended_gpu(monkeypatch) -> Iterator[torch.device]:
    """Give a device whose tensors say that they lie on a GPU, until the block ends."""
    grouped, wrapped = torch._C._group_tensors_by_device_and_dtype, T._make_wrapper_subclass

    def by_place(lists: list, with_indices: bool = False) -> dict:  # AdamW's and clipping's, whose kernels take lists
        groups = grouped(lists, with_indices).items()
        return {((GPU if on_gpu(parts[0][0][0]) else device), dtype): parts for (device, dtype), parts in groups}

    def on_cpu(*args: Any, **options: Any) -> torch.Tensor:  # its parts know where it is
        return wrapped(*args, **{**options, "device": CPU})

    for name, answer in STAND_INS.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, answer=answer: answer)
    monkeypatch.setattr(torch, "autocast", _Autocast)
    monkeypatch.setattr(torch._C, "_group_tensors_by_device_and_dtype", by_place)
    monkeypatch.setattr(T, "_make_wrapper_subclass", staticmethod(on_cpu))
    kernels = _Kernels()
    with kernels, _Calls(kernels):
        yield GPU

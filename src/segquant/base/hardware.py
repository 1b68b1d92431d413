"""Describe this machine without importing torch, because the pipeline does so on every run."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Instruction sets by which PyTorch selects its kernels. Processors of the same name can differ here, and then their
# speeds differ many times over.
_INSTRUCTIONS = tuple("avx2 avx512f avx512_vnni avx512_bf16 amx_int8 amx_bf16 asimd asimddp i8mm bf16 sve".split())
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # without one of these, bfloat16 is slower than float32
_ENGINES = ("onnxruntime", "openvino")


def probe() -> dict[str, Any]:
    """What speed depends on: processor, cores, memory, GPU and versions. The same on every call."""
    return {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "instructions": instructions(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "gpu": _gpu(),
        "system": platform.system(),
        "python": platform.python_version(),
        **_versions("torch", "torchao", *_ENGINES),
    }


def environment() -> dict[str, Any]:
    """What accuracy depends on besides code and data: the GPU and the versions of the numerical libraries."""
    names = "numpy pillow safetensors scipy torch torchao transformers onnx onnxscript nncf".split()
    return {"gpu": (_gpu() or "").split(",")[0] or None, **_versions(*names, *_ENGINES)}


def vendor() -> str:
    """Who made the processor; empty where /proc/cpuinfo does not say."""
    return _cpuinfo("vendor_id")


def instructions() -> list[str]:
    """The processor's instruction sets that matter to PyTorch's kernels; empty where the system is not Linux."""
    flags = _cpuinfo("flags", "Features").split()
    return [name for name in _INSTRUCTIONS if name in flags]


def _versions(*names: str) -> dict[str, str | None]:
    """Versions of packages; None for a package that is not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _cpuinfo(*keys: str) -> str:
    """The value of the first line of /proc/cpuinfo with one of the keys; empty where there is none."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def _gpu() -> str | None:
    """Name and driver version of the first NVIDIA GPU."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.strip().splitlines()[0] if answer.returncode == 0 and answer.stdout.strip() else None

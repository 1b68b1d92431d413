"""What this machine is, without importing torch: the pipeline asks on every run."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# What PyTorch's kernels choose by; processors of one name can differ here, and in speed many times over.
_INSTRUCTIONS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
_ENGINES = ("onnxruntime", "openvino")


def probe() -> dict[str, Any]:
    """Processor, cores, memory, GPU and the versions that speed depends on: the same on the same machine."""
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
    """What accuracy depends on besides code and data: the GPU and the libraries that compute."""
    names = ("numpy", "pillow", "safetensors", "torch", "torchao", "transformers", "onnx", "onnxscript", "nncf")
    return {"gpu": (_gpu() or "").split(",")[0] or None, **_versions(*names, *_ENGINES)}


BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # instructions without which bfloat16 takes longer than float32


def instructions() -> list[str]:
    """The processor's, of those that PyTorch's kernels ask for; none known outside of Linux."""
    known = _cpuinfo("flags", "Features").split()
    return [name for name in _INSTRUCTIONS if name in known]


def _versions(*names: str) -> dict[str, str | None]:
    """Of packages; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _cpuinfo(*keys: str) -> str:
    """The first value that Linux gives for one of the keys; empty elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def _gpu() -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.strip().splitlines()[0] if answer.returncode == 0 and answer.stdout.strip() else None

"""segquant measures the cost and the benefit of each precision for a SegFormer model on a segmentation data set."""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# Silence messages at import that a user can do nothing about: CUDA extensions that a CPU build lacks (torchao),
# enums that torchao registers (pytree), a missing torchvision (transformers).
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

# On Intel's processors, MKL adds up long products in an order that depends on the number of threads, unless it is
# asked not to before its first product. torchrun gives each process one thread, and counts must not depend on that.
# A value of the user's own stays.
if Path("/proc/cpuinfo").exists() and "GenuineIntel" in Path("/proc/cpuinfo").read_text():
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

# Names that are imported on first use, so that `import segquant` is fast and no stage depends on code it does not run.
_LAZY = {"load_quantized": "segquant.engines.load"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'segquant' has no attribute {name!r}")

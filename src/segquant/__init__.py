"""segquant measures the cost and the benefit of each precision for a SegFormer model on a segmentation data set."""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any

__version__ = "0.1.0"

# Silence messages at import that a user can do nothing about: CUDA extensions that a CPU build lacks (torchao),
# enums that torchao registers (pytree), a missing torchvision (transformers).
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

# PyTorch's threads wait for one another in a loop of 300,000 rounds before they sleep, milliseconds long. Where other
# programs want the cores too, that loop takes the time of the thread that is waited for: a forward pass took ten times
# as long. On a quiet machine, 10,000 rounds are as fast. A policy or a number of the user's own stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Names that are imported on first use, so that `import segquant` is fast and no stage depends on code it does not run.
_LAZY = {"load_quantized": "segquant.engines.load"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'segquant' has no attribute {name!r}")

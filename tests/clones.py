"""Clone the working tree, and run commands in the clone."""

import os
import re
import shutil
import subprocess
import sys

import yaml
from conftest import ROOT

ENV = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "1",
    "WANDB_MODE": "disabled",  # tests that read W&B's runs set it to offline
}


def sh(folder, command, code=0):
    """Run a shell command in `folder`: its output. Fails unless it exits with `code` (None: with any code)."""
    result = subprocess.run(
        command, shell=True, cwd=folder, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert code is None or result.returncode == code, f"$ {command}\n{result.stdout}"
    return result.stdout


def ran(output):
    """The stages that DVC ran, by its output."""
    return set(re.findall(r"Running stage '(.*)'", output))


def copied(folder, methods):
    """Clone the working tree to `folder` with these methods, four images of each split, and no results.

    Returns the clone's parameters.
    """
    listed = sh(ROOT, "git ls-files --cached --others --exclude-standard").splitlines()
    for name in listed:
        if (ROOT / name).is_file():  # a deleted file is still listed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for stale in [*folder.glob("metrics/**/*.*"), folder / "dvc.lock", folder / "stages/dvc.lock"]:
        if stale.name != "dvc.yaml":
            stale.unlink(missing_ok=True)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    for kind in ("methods", "packed"):
        recipes = params["quant"][kind]
        params["quant"][kind] = {name: recipes[name] for name in methods if name in recipes}
    params["data"]["limit"] = 4
    params["protocol"] = "fixed-64x64-v1"
    params["eval"]["pictures"] = 2
    params["speed"] = {"input_size": [64, 64], "batch_sizes": [1, 2], "runs": 2, "warmup": 1}
    params["sensitivity"] |= {"bits": [2], "images": 1}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    sh(folder, "git init -q -b main && git config user.email a@b.c && git config user.name T")
    return params

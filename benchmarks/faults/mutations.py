"""Inputs with mistakes: each is scored by segquant and by a plain script, or refused in one line."""

from __future__ import annotations

import io
import json
import math
import random
import shutil
import zipfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from faults.mistakes import bytes_changed, header_changed, text_changed, value_changed
from faults.place import LAYOUT, PROTOCOL, SPLIT, Place
from faults.plain import pairs, plain_graph, plain_model
from faults.trial import forked, judge

TOLERANCE = 1e-3  # in a score from 0 to 1: a few pixels whose two best classes differ by rounding


class Kind(NamedTuple):
    """A kind of input. `change` writes it with a mistake into an empty folder and gives what `ours` and `theirs` take.

    `ours` prints segquant's scores as JSON. `theirs` gives the right ones, or raises; None where none are known.
    """

    share: int  # of 2,000 trials
    change: Callable[[Place, random.Random, Path], Any]
    ours: Callable[[Place, Any], None]
    theirs: Callable[[Place, Any], dict[str, float]] | None


def trial(place: Place, name: str, seed: str, folder: Path) -> str:
    """Make one input of a kind, score it twice, and give the verdict."""
    kind, draw = KINDS[name], random.Random(f"{name} {seed}")
    (folder / "input").mkdir(parents=True)
    target = kind.change(place, draw, folder / "input")
    ended = forked(lambda: kind.ours(place, target), folder / "ours")

    def right() -> str | None:
        scores = json.loads(ended.stdout.splitlines()[-1]) if ended.stdout.strip() else {}
        if not all(isinstance(value, float | int) and math.isfinite(value) for value in scores.values()):
            return f"a score is no number: {scores}"
        if kind.theirs is None:
            return None
        plain = forked(lambda: print(json.dumps(kind.theirs(place, target))), folder / "theirs")
        if plain.code:
            return f"the plain script fails: {plain.stderr.strip().splitlines()[-1][:300]}"
        expected = json.loads(plain.stdout.splitlines()[-1])
        far = {key: (scores[key], value) for key, value in expected.items() if abs(scores[key] - value) > TOLERANCE}
        return f"scores and right ones: {far}" if far else None

    verdict = judge(ended, right)
    if verdict in ("right", "refused"):
        shutil.rmtree(folder)
    return verdict


def _data(part: str) -> Callable:
    def change(place: Place, draw: random.Random, folder: Path) -> Path:
        shutil.copytree(place.data, folder / "data")
        path = draw.choice(sorted((folder / "data" / part / SPLIT).iterdir()))
        path.write_bytes(bytes_changed(path.read_bytes(), draw))
        return folder / "data"

    return change


def _archive(place: Place, draw: random.Random, folder: Path) -> Path:
    path = folder / "data.zip"
    with zipfile.ZipFile(path, "w", draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for file in sorted(place.data.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(place.data))
    path.write_bytes(bytes_changed(path.read_bytes(), draw))
    return path


def _table(place: Place, draw: random.Random, folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"image": {"bytes": image, "path": None}, "annotation": {"bytes": label, "path": None}}
        for image, label in pairs(place.data)
    ]
    path = folder / f"{SPLIT}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, compression=draw.choice(["none", "zstd"]))
    path.write_bytes(bytes_changed(path.read_bytes(), draw))
    return folder


def _model(name: str) -> Callable:
    def change(place: Place, draw: random.Random, folder: Path) -> Path:
        shutil.copytree(place.model, folder / "model")
        path = folder / "model" / name
        if name.endswith(".json") and draw.random() < 0.8:
            path.write_text(json.dumps(value_changed(json.loads(path.read_text()), draw)))
        elif name.endswith(".safetensors") and draw.random() < 0.5:
            path.write_bytes(header_changed(path.read_bytes(), draw))
        else:
            path.write_bytes(bytes_changed(path.read_bytes(), draw))
        return folder / "model"

    return change


def _artifact(sealed: bool) -> Callable:
    def change(place: Place, draw: random.Random, folder: Path) -> Path:
        from segquant.base.files import digest, sha256

        method = draw.choice(sorted(path.name for path in place.artifacts.iterdir()))
        shutil.copytree(place.artifacts / method, folder / method)
        path = draw.choice(sorted((folder / method).iterdir()))
        description = folder / method / "quantization.json"
        info = json.loads(description.read_text())
        if path == description and draw.random() < 0.8:
            info = value_changed(info, draw)
            path.write_text(json.dumps(info))
        elif path.suffix == ".json":
            path.write_text(json.dumps(value_changed(json.loads(path.read_text()), draw)))
        else:
            path.write_bytes((header_changed if draw.random() < 0.5 else bytes_changed)(path.read_bytes(), draw))
        if sealed and isinstance(info, dict):
            if path != description and isinstance(info.get("files"), dict):
                info["files"][path.name] = sha256(path)
            info.pop("digest", None)
            description.write_text(json.dumps({**info, "digest": digest(info)}))
        return folder / method

    return change


def _graph(place: Place, draw: random.Random, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(bytes_changed(place.graph.read_bytes(), draw))
    return path


def _params(place: Place, draw: random.Random, folder: Path) -> Path:
    path = folder / "params.yaml"
    path.write_text(text_changed(place.params.read_text(), draw))
    return path


def _label_map(place: Place, draw: random.Random, folder: Path) -> Path:
    path = folder / "map.yaml"
    path.write_text(text_changed("map: {" + ", ".join(f"{i}: {i}" for i in range(150)) + "}\n", draw))
    return path


def _rows(source: Path) -> tuple[list[dict], list[str]]:
    from segquant.base.config import Data
    from segquant.data.sources import open_source

    opened = open_source(Data(str(source), **LAYOUT), SPLIT)
    return [opened[number] for number in range(len(opened))], list(opened.classes)


def _score(model: Path, data: Path, label_map: str | None = None) -> None:
    from segquant import models
    from segquant.base.config import Eval
    from segquant.data.label_map import class_names, match_classes
    from segquant.data.preprocessing import read_preprocessing
    from segquant.engines.load import load
    from segquant.evaluation.loop import evaluate
    from segquant.evaluation.predict import prepared

    loaded = load(model).model if (model / "quantization.json").is_file() else models.load(model)
    preprocessing, settings = read_preprocessing(model), Eval(workers=0)
    rows, classes = _rows(data)
    to_data = match_classes(class_names(loaded.config), classes, label_map)
    options = {"protocol": PROTOCOL, "settings": settings, "preprocessing": preprocessing, "label_map": to_data}
    result = evaluate(prepared(loaded, settings), rows, len(rows), num_classes=len(classes), **options)
    scores = result.scores
    print(json.dumps({"mean_iou": scores.mean_iou, "overall_accuracy": scores.overall_accuracy, "n": result.n_images}))


def _score_graph(place: Place, path: Path) -> None:
    from segquant.base import config
    from segquant.evaluation.graph_file import score_graph

    options = {"engine": "onnxruntime", "label_map": None, "protocol": PROTOCOL, "limit": None}
    with redirect_stdout(io.StringIO()):
        scores = score_graph(config.load(place.params), onnx=path, data=str(place.data), split=SPLIT, **options)
    print(json.dumps({key: scores[key] for key in ("mean_iou", "overall_accuracy")} | {"n": scores["n_images"]}))


def _read_params(place: Place, path: Path) -> None:
    from segquant.base import config

    config.load(path)


def _unchanged(place: Place, artifact: Path) -> dict[str, float]:
    """The scores of an artifact before it was changed: what its digests do not allow to change must give them."""
    text = io.StringIO()
    with redirect_stdout(text):
        _score(place.artifacts / artifact.name, place.data)
    return json.loads(text.getvalue().splitlines()[-1])


def _data_kind(share: int, change: Callable) -> Kind:
    return Kind(
        share,
        change,
        lambda place, data: _score(place.model, data),
        lambda place, data: plain_model(place.model, data),
    )


def _model_kind(share: int, name: str) -> Kind:
    return Kind(
        share,
        _model(name),
        lambda place, model: _score(model, place.data),
        lambda place, model: plain_model(model, place.data),
    )


def _score_artifact(place: Place, artifact: Path) -> None:
    _score(artifact, place.data)


KINDS = {
    "image file": _data_kind(300, _data("images")),
    "label file": _data_kind(200, _data("annotations")),
    "zip archive": _data_kind(200, _archive),
    "Parquet file": _data_kind(200, _table),
    "config.json": _model_kind(250, "config.json"),
    "preprocessor_config.json": _model_kind(150, "preprocessor_config.json"),
    "model.safetensors": _model_kind(150, "model.safetensors"),
    "artifact": Kind(150, _artifact(False), _score_artifact, _unchanged),
    "artifact, digests made anew": Kind(150, _artifact(True), _score_artifact, None),
    "ONNX graph": Kind(100, _graph, _score_graph, lambda place, path: plain_graph(path, place.data, place.model)),
    "params.yaml": Kind(100, _params, _read_params, None),
    "label map": Kind(50, _label_map, lambda place, path: _score(place.model, place.data, str(path)), None),
}

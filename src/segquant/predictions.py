"""`segquant predict`: what an artifact sees on photographs, laid over them beside a legend."""

from __future__ import annotations

import glob
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from segquant import models
from segquant.base.config import Params, check_protocol
from segquant.base.errors import DataError
from segquant.base.files import read_json, write_bytes
from segquant.base.progress import progress
from segquant.data.images import decode_image, image_size
from segquant.data.layouts import IMAGES
from segquant.data.palette import palette
from segquant.engines.load import load
from segquant.evaluation.predict import predict, prepared

log = logging.getLogger(__name__)
_ORIENTATION = 0x0112  # EXIF's tag
_LEGEND = 20  # classes at most


def predict_pictures(
    params: Params, pictures: Sequence[str], artifact: str | Path, output: Path, protocol: str | None = None
) -> list[dict[str, Any]]:
    """Write an overlay with a legend to `output` for each of `pictures`, which `find` looks up.

    Gives {picture, overlay, classes: {name: share of the pixels, largest first}} for each. Photographs are turned as
    EXIF says. Raises DataError for what is missing or broken.
    """
    protocol = check_protocol(protocol or params.protocol)
    found = find(pictures, output)
    loaded = load(artifact, models.device(params.eval.device))
    settings = params.eval.on(loaded.info["recipe"].get("engine"))
    labels = read_json(Path(artifact) / "config.json").get("id2label", {})
    names = {int(number): str(name) for number, name in labels.items()}
    model = prepared(loaded.model, settings)
    results: dict[str, dict[str, Any]] = {}
    with progress(total=len(found), desc="predict", unit="image") as bar:
        for one in predict(model, _rows(found), protocol, settings, models.normalization(artifact)):
            bar.update(1)
            if one.error:
                log.warning("skipped: %s", one.error)
                continue
            ids, source = one.classes.cpu().numpy(), found[one.row["id"]]
            target = output / one.row["id"]
            write_bytes(target, overlay(decode_image(one.row["image"], str(source)), ids, names))
            seen = {names.get(number, str(number)): share for number, share in by_share(ids)}
            results[one.row["id"]] = {"picture": str(source), "overlay": str(target), "classes": seen}
    return [results[name] for name in found if name in results]


def find(pictures: Sequence[str], output: Path) -> dict[str, Path]:
    """{name of the overlay: picture} of files, folders (all pictures below, but for those of an `output` in there) and
    glob patterns, in their order.

    Raises DataError for what matches nothing, for two whose overlays would have one name, and for one that its own
    overlay would replace.
    """
    found: dict[str, Path] = {}
    for one in pictures:
        path = Path(one)
        if path.is_dir():
            own = output.resolve() if _below(output, path) else None  # overlays of before
            files = [p for p in sorted(path.rglob("*")) if _is_picture(p) and not (own and _below(p, own))]
            some = {p.relative_to(path): p for p in files}
        elif path.is_file():
            some = {Path(path.name): path}
        else:
            some = {Path(Path(p).name): Path(p) for p in sorted(glob.glob(one, recursive=True)) if _is_picture(Path(p))}
        if not some:
            raise DataError(f"'{one}' is no picture, no folder with pictures and no pattern that matches one")
        for name, picture in some.items():
            target = str(name.with_suffix(".png"))
            if found.setdefault(target, picture).resolve() != picture.resolve():
                raise DataError(f"{found[target]} and {picture} would both be written to {target}: predict them apart")
            if (output / target).resolve() == picture.resolve():
                raise DataError(f"{picture} would be replaced by its overlay: give another --output")
    return found


def _below(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _is_picture(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in IMAGES


def _rows(found: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    """Rows as of shards, one picture in memory at a time."""
    for name, path in found.items():
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        width, height = image_size(data, str(path))
        with Image.open(io.BytesIO(data)) as image:
            if image.getexif().get(_ORIENTATION, 1) != 1:
                file = io.BytesIO()
                ImageOps.exif_transpose(image).convert("RGB").save(file, "PNG")
                data = file.getvalue()
                width, height = image_size(data, str(path))
        yield {"id": name, "image": data, "width": width, "height": height}


def by_share(ids: np.ndarray) -> list[tuple[int, float]]:
    """(class id, share of the pixels) of a class map uint8 (H, W), largest first."""
    counts = np.bincount(ids.ravel())
    return sorted(((int(i), float(counts[i] / ids.size)) for i in np.nonzero(counts)[0]), key=lambda one: -one[1])


def overlay(photo: Image.Image, ids: np.ndarray, names: Mapping[int, str]) -> bytes:
    """A PNG: the photograph under the colours of its class map uint8 (H, W), and to its right what they mean."""
    colors = palette()
    image = Image.blend(photo, Image.fromarray(colors[ids]), 0.55)
    size = max(11, min(32, photo.height // 26))
    font = ImageFont.load_default(size)
    told = by_share(ids)
    lines = [(number, f"{names.get(number, number)} {100 * share:.1f} %") for number, share in told[:_LEGEND]]
    more = [f"and {len(told) - _LEGEND} more"] if len(told) > _LEGEND else []
    step = round(1.5 * size)
    width = round(max(font.getlength(text) for text in [*(text for _, text in lines), *more])) + 3 * size
    height = max(image.height, step * (len(lines) + len(more)) + size)
    sheet = Image.new("RGB", (image.width + width, height), "white")
    sheet.paste(image, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for row, (number, text) in enumerate(lines):
        x, y = image.width + size // 2, size // 2 + row * step
        draw.rectangle((x, y, x + size, y + size), fill=tuple(int(c) for c in colors[number]), outline="black")
        draw.text((x + 1.6 * size, y - size // 8), text, fill="black", font=font)
    for row, text in enumerate(more, len(lines)):
        draw.text((image.width + 2.1 * size, size // 2 + row * step), text, fill="black", font=font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()

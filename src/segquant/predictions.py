"""`segquant predict`: an artifact's class maps drawn over photographs, each beside a legend."""

from __future__ import annotations

import glob
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from segquant import models
from segquant.base.config import Params, check_protocol
from segquant.base.errors import DataError, one_line
from segquant.base.files import write_bytes
from segquant.base.output import MARKER, claimed, maker
from segquant.base.progress import progress
from segquant.base.temporary import temporary
from segquant.data.images import as_rgb, decode_image, histogram, image_size, open_unlimited
from segquant.data.label_map import class_names
from segquant.data.layouts import IMAGES
from segquant.data.palette import palette
from segquant.data.preprocessing import read_preprocessing
from segquant.data.tree import Folder
from segquant.engines.load import load
from segquant.evaluation.predict import predict, prepared

log = logging.getLogger(__name__)
_ORIENTATION = 0x0112  # EXIF's tag
_LEGEND = 20  # the most classes that a legend names


def predict_pictures(
    params: Params,
    pictures: Sequence[str],
    artifact: str | Path,
    output: Path,
    protocol: str | None = None,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Write an overlay with a legend to `output` for each of `pictures`, which are looked up by `find`.

    Returns {picture, overlay, classes: {name: share of the pixels, largest first}} for each, with eval.on_error: skip
    {picture, skipped: error} for a broken one. The EXIF orientation of a photograph is applied. Raises DataError for a
    missing or broken picture, and as `find` does.
    """
    protocol = check_protocol(protocol or params.protocol)
    paths = find(pictures, output)
    loaded = load(artifact, models.device(params.eval.device))
    settings = params.eval.on(loaded.info["recipe"].get("engine"))
    names = dict(enumerate(class_names(loaded.model.config)))
    model = prepared(loaded.model, settings)
    results: dict[str, dict[str, Any]] = {}

    def skip(name: str, error: DataError) -> None:
        if settings.on_error != "skip":
            raise error
        log.warning("skipped: %s", error)
        results[name] = {"picture": str(paths[name]), "skipped": str(error)}

    rows = _rows(paths, params.data.max_pixels, skip)
    with _staging(output, paths, force) as staging, progress(total=len(paths), desc="predict", unit="image") as bar:
        for prediction in predict(model, rows, protocol, settings, read_preprocessing(artifact)):
            bar.update(1)
            if prediction.error:
                skip(prediction.row["id"], prediction.error)
                continue
            row, ids = prediction.row, prediction.classes.cpu().numpy()
            picture, target = paths[row["id"]], output / row["id"]
            write_bytes(staging / row["id"], overlay(decode_image(row["image"], str(picture)), ids, names))
            shares = {names.get(number, str(number)): share for number, share in by_share(ids)}
            results[row["id"]] = {"picture": str(picture), "overlay": str(target), "classes": shares}
        if all("skipped" in result for result in results.values()):
            raise DataError(f"none of the {len(paths)} pictures could be read, such as {next(iter(paths.values()))}")
    return [results[name] for name in paths if name in results]


@contextmanager
def _staging(output: Path, names: Iterable[str], force: bool) -> Iterator[Path]:
    """Hold `output`, and give a folder whose files, of these names, move there once the block has ended well."""
    with claimed(output, "predict", force) as claim, temporary(output) as folder:
        claim.check(*(output / name for name in names))
        yield folder
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            target = output / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            claim.replaces(target, path)
            path.replace(target)


def find(pictures: Sequence[str], output: Path) -> dict[str, Path]:
    """Look up files, folders and glob patterns; return {name of the overlay: picture} in their order.

    A folder stands for all pictures below it, but for overlays in `output` or in folders of earlier runs. Raises
    DataError for a name that matches no picture, for two pictures with one overlay name, and for a picture that its
    overlay would replace.
    """
    paths: dict[str, Path] = {}
    for name in pictures:
        matches = _matches(name, output)
        if not matches:
            raise DataError(f"'{name}' is no picture, no folder with pictures and no pattern that matches one")
        for relative, picture in matches:
            target = str(relative.with_suffix(".png"))
            if paths.setdefault(target, picture).resolve() != picture.resolve():
                raise DataError(
                    f"{paths[target]} and {picture} would both be written to {target}: predict them separately"
                )
            if (output / target).resolve() == picture.resolve():
                raise DataError(f"{picture} would be replaced by its overlay: give another --output")
    return paths


def _matches(name: str, output: Path) -> list[tuple[Path, Path]]:
    """(path below `output`, picture) for each picture of one file, folder or pattern."""
    path = Path(name)
    if path.is_dir():
        overlays = [output] if _below(output, path) else []
        overlays += [marker.parent for marker in path.rglob(MARKER) if maker(marker.parent) == "predict"]
        overlays = {folder.resolve() for folder in overlays}
        files = [path / name for name in Folder(path).names()]
        pictures = [p for p in files if _is_picture(p) and overlays.isdisjoint(p.resolve().parents)]
        return [(p.relative_to(path), p) for p in pictures]
    if path.is_file():
        return [(Path(path.name), path)]
    return [(Path(p.name), p) for p in map(Path, sorted(glob.glob(name, recursive=True))) if _is_picture(p)]


def _below(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _is_picture(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in IMAGES


def _rows(
    paths: Mapping[str, Path], max_pixels: int, broken: Callable[[str, DataError], None]
) -> Iterator[dict[str, Any]]:
    """Rows as in shards, with one picture in memory at a time; `broken` gets the name and the error of any other."""
    for name, path in paths.items():
        try:
            data, (width, height) = _upright(path, max_pixels)
        except DataError as error:
            broken(name, error)
            continue
        yield {"id": name, "image": data, "width": width, "height": height}


def _upright(path: Path, max_pixels: int) -> tuple[bytes, tuple[int, int]]:
    """A picture, encoded and turned as its EXIF orientation says, and its (width, height)."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    size = image_size(data, str(path), max_pixels)
    image = open_unlimited(data)
    try:
        if image.getexif().get(_ORIENTATION, 1) == 1:
            return data, size
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow raises many types
        raise DataError(f"{path} has EXIF data that cannot be read ({one_line(error)}): remove them") from error
    file = io.BytesIO()
    as_rgb(image).save(file, "PNG")
    return file.getvalue(), image_size(file.getvalue(), str(path), max_pixels)


def by_share(ids: np.ndarray) -> list[tuple[int, float]]:
    """(class id, share of the pixels) of a class map uint8 (H, W), the largest share first."""
    counts = histogram(ids)
    return sorted(((int(i), float(counts[i] / ids.size)) for i in np.nonzero(counts)[0]), key=lambda pair: -pair[1])


def overlay(photo: Image.Image, ids: np.ndarray, names: Mapping[int, str]) -> bytes:
    """A PNG of a photograph blended with the colours of its class map uint8 (H, W), and a legend to its right."""
    colors = palette()
    image = Image.blend(photo, Image.fromarray(colors[ids]), 0.55)
    size = max(11, min(32, photo.height // 26))
    font = ImageFont.load_default(size)
    shares = by_share(ids)
    lines = [(number, f"{names.get(number, number)} {100 * share:.1f} %") for number, share in shares[:_LEGEND]]
    more = [f"and {len(shares) - _LEGEND} more"] if len(shares) > _LEGEND else []
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

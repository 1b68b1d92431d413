"""The output folder of `segquant run`: which file of a method lies where, and the data sets that are scored."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from segquant.base.config import Params
from segquant.base.errors import ConfigError, DataError
from segquant.base.files import replacing, write_json
from segquant.base.output import Claim
from segquant.base.temporary import temporary
from segquant.data.label_map import match_classes
from segquant.data.rows import OnError
from segquant.data.shards import Shard, open_shards, read_manifest, write_shards
from segquant.data.sources import open_source
from segquant.evaluation.reference import write_reference
from segquant.evaluation.score import try_score, write_scores


@dataclass(frozen=True)
class Workspace:
    """`artifacts/METHOD/` and `speed/METHOD.json`; each data set has a folder for the rest, one set the root itself."""

    root: Path

    @property
    def exports(self) -> Path:
        return self.root / "onnx"

    @property
    def partial(self) -> Path:
        return self.root / "partial"

    def artifact(self, method: str) -> Path:
        return self.root / "artifacts" / method

    def speed(self, method: str) -> Path:
        return self.root / "speed" / f"{method}.json"


@dataclass(frozen=True)
class DataSet:
    """Labelled images that a run scores on, and the folder for what is made of them."""

    data: str
    source: Any
    split: str
    label_map: str | None
    folder: Path
    on_error: OnError = "stop"

    @property
    def shards(self) -> list[Shard]:
        return open_shards(self.folder / "shards", self.split)

    @property
    def reference(self) -> Path:
        return self.folder / "reference"

    def check(self, model_classes: Sequence[str]) -> None:
        """Raise DataError where the classes of a model cannot be matched with those of this data set."""
        try:
            match_classes(model_classes, self.source.classes, self.label_map)
        except DataError as error:
            raise DataError(f"{self.data}: {error}") from error

    def prepare(self, shards: Path, shard_bytes: int, learned: Set[bytes] = frozenset()) -> None:
        """Write `shards` as `write_shards`. Raises DataError for a split without a labelled pixel."""
        manifest = write_shards({self.split: self.source}, shards, shard_bytes, self.on_error, learned)
        if not manifest["splits"][self.split]["class_pixels"]:
            raise DataError(f"{self.data} has no labelled pixel in split '{self.split}': every one is to be ignored")

    def refer(self, baseline: Path, params: Params, partial: Path) -> None:
        """Write the float model's class maps, which agreement is counted against."""
        options = {"protocol": params.protocol, "settings": params.eval}
        write_reference(baseline, self.shards, self.reference, partial=partial / "reference", **options)

    def outputs(self, method: str) -> dict[str, Path]:
        """The files of a method's scores, by the names that `write_scores` has for them."""
        return {
            "metrics_path": self.folder / "accuracy" / f"{method}.json",
            "classes_path": self.folder / "classes" / f"{method}.csv",
            "counts_path": self.folder / "confusion" / f"{method}.parquet",
        }

    def evaluate(self, method: str, artifact: Path, params: Params, partial: Path) -> dict[str, Any]:
        """Score a method's artifact; write and return its metrics, in which a failure stands where figures would."""
        metrics, evaluation = try_score(
            artifact,
            self.shards,
            self.source.classes,
            protocol=params.protocol,
            reference=self.reference,
            label_map=self.label_map,
            settings=replace(params.eval, pictures=0),
            partial=partial / method,
        )
        outputs = self.outputs(method)
        for path in outputs.values():
            path.unlink(missing_ok=True)  # of an earlier run
        if evaluation:
            write_scores(metrics, evaluation, self.source.classes, **outputs)
        return metrics


def prepare(sets: Sequence[DataSet], root: Path, shard_bytes: int, learned: Set[bytes], claim: Claim) -> None:
    """Write each set's shards and manifest.json, once all can be read, in place of an earlier run's results.

    Raises as `DataSet.prepare`, and the folder `root` is as it was.
    """
    with temporary(root) as staging:
        ready = [staging / str(number) for number, _ in enumerate(sets)]
        for data_set, shards in zip(sets, ready, strict=True):
            data_set.prepare(shards, shard_bytes, learned)
        forget(root, claim)
        for data_set, shards in zip(sets, ready, strict=True):
            with replacing(data_set.folder / "shards") as part:
                shards.rename(part)
            write_json(data_set.folder / "manifest.json", read_manifest(data_set.folder / "shards"))


def forget(root: Path, claim: Claim) -> None:
    """Remove the results of an earlier run, ended or not, which would pass for this one's."""
    paths = earlier(root, claim)
    claim.check(*paths)
    for path in paths:
        path.unlink(missing_ok=True)


def earlier(root: Path, claim: Claim) -> list[Path]:
    """The results that a run before this one wrote."""
    kinds = {"accuracy", "classes", "confusion", "speed"}
    names = sorted(claim.known)
    return [root / name for name in names if name == "results.json" or PurePosixPath(name).parent.name in kinds]


def targets(sets: Sequence[DataSet], methods: Collection[str], built: Collection[str], place: Workspace) -> list[Path]:
    """All files and folders that a run replaces."""
    written = [place.exports, place.partial, place.root / "results.json", place.root / "run.log"]
    written += [*map(place.artifact, built), *map(place.speed, methods)]
    for data_set in sets:
        written += [data_set.folder / name for name in ("shards", "reference", "manifest.json")]
        for method in methods:
            written += data_set.outputs(method).values()
    return written


def open_sets(
    params: Params,
    data: Sequence[str],
    label_maps: Sequence[str | None],
    split: str,
    limit: int | None,
    output: Path,
    model_classes: Sequence[str],
) -> dict[str, DataSet]:
    """The data sets by name, the last part of each one's path; a single one is kept in `output` itself.

    Raises DataError for one that cannot be read, or whose classes are not the model's, and ConfigError for two that
    have the same name.
    """
    if len(label_maps) not in (1, len(data)):
        raise ConfigError(
            f"there are {len(label_maps)} label maps for {len(data)} data sets: give one, or one for each"
        )
    names = [Path(place).resolve().name if Path(place).exists() else place.replace("/", "-") for place in data]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"two data sets are called '{twice}': rename a folder, as results go by its name")
    maps = list(label_maps) * (len(data) if len(label_maps) == 1 else 1)
    folders = [output if len(data) == 1 else output / "data" / name for name in names]
    on_error = params.eval.on_error
    sources = [open_source(replace(params.data, source=place), split, limit, on_error) for place in data]
    sets = {
        name: DataSet(place, source, split, label_map, folder, on_error)
        for name, place, source, label_map, folder in zip(names, data, sources, maps, folders)
    }
    for data_set in sets.values():
        data_set.check(model_classes)
    return sets

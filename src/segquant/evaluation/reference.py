"""Store the float32 model's class maps, with which the agreement of every method is counted pixel by pixel."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from segquant import models
from segquant.base.allocator import align
from segquant.base.config import Eval
from segquant.base.errors import SegquantError, one_line
from segquant.base.files import replacing, sha256
from segquant.base.hub import files
from segquant.base.ranks import ranks
from segquant.data.preprocessing import read_preprocessing
from segquant.data.shards import Shard, shard_rows
from segquant.evaluation.predict import predict, prepared
from segquant.evaluation.shardwise import kept, over_shards

_SCHEMA = pa.schema([("id", pa.string()), ("prediction", pa.binary())])


def write_reference(
    source: str | Path, shards: Sequence[Shard], folder: str | Path, *, protocol: str, settings: Eval, partial: Path
) -> None:
    """Predict with the float32 model at `source`; write one Parquet file per shard, of the same name, to `folder`.

    A row holds an id and a class map as PNG, which is null where the image could not be read. `partial` keeps the
    finished shards until all are finished.
    """
    model, preprocessing = models.load(source).to(models.device(settings.device)), read_preprocessing(source)
    settings = replace(settings, dtype="float32", compile=False)
    model = prepared(align(model), settings)

    def work(_: int, shard: Shard, done: Any) -> bytes:
        rows: dict[int, dict] = {}
        predictions = predict(model, shard_rows(shard), protocol, settings, preprocessing, origin=str(shard.path))
        for prediction in predictions:
            png = io.BytesIO()
            if prediction.classes is not None:
                Image.fromarray(prediction.classes.cpu().numpy()).save(png, "PNG", compress_level=3)
            rows[prediction.index] = {"id": prediction.row["id"], "prediction": png.getvalue() or None}
            done(1)
        table = pa.Table.from_pylist([rows[index] for index in sorted(rows)], _SCHEMA)
        file = io.BytesIO()
        pq.write_table(table, file, compression="none", use_dictionary=False)
        return file.getvalue()

    identity = [
        [sha256(path) for path in files(Path(source))],
        protocol,
        preprocessing.to_json(),
        settings.batch_size,
        settings.on_error,
        next(model.parameters()).device.type,
    ]
    with kept(partial):
        results = over_shards(work, shards, partial, identity, "reference float32")
        if ranks()[0]:
            list(results)  # empty on this rank, but iterating does the work
            return
        with replacing(folder) as part:
            part.mkdir()
            for shard, data in zip(shards, results):
                (part / shard.path.name).write_bytes(data)


def read_reference(folder: str | Path, shard: Shard) -> list[tuple[str, bytes | None]]:
    """Read (id, class map as PNG) of each row of a shard, in the shard's order. Raises SegquantError if it cannot."""
    path = Path(folder) / shard.path.name
    try:
        with pq.ParquetFile(path) as file:  # pq.read_table imports pandas
            return [(row["id"], row["prediction"]) for row in file.read().to_pylist()]
    except (OSError, pa.ArrowException) as error:
        reason = one_line(error)
        raise SegquantError(f"reference {path} cannot be read ({reason}): remove it and run again") from error

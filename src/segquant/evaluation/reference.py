"""Float32's class maps, kept so that every method's agreement is counted pixel by pixel."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from segquant import models
from segquant.data.images import decode_annotation
from segquant.evaluation.predict import predict
from segquant.files import replacing
from segquant.progress import progress

_SCHEMA = pa.schema([("id", pa.string()), ("prediction", pa.binary())])


def write_reference(
    source: str | Path,
    rows: Iterable[dict],
    total: int,
    path: str | Path,
    *,
    protocol: str,
    batch_size: int,
    device: torch.device,
) -> None:
    """Predict every row with the float32 baseline at `source` and write (id, class map as PNG) to a Parquet file."""
    model, normalization = models.load(source).to(device), models.normalization(source)
    with replacing(path) as part, pq.ParquetWriter(part, _SCHEMA, compression="none") as writer:
        kept: list[dict] = []
        with progress(total=total, desc="reference float32", unit="image") as bar:
            for row, prediction in predict(model, rows, protocol, batch_size, normalization):
                encoded = io.BytesIO()
                Image.fromarray(prediction).save(encoded, "PNG", compress_level=3)
                kept.append({"id": row["id"], "prediction": encoded.getvalue()})
                if len(kept) == 64:
                    writer.write_table(pa.Table.from_pylist(kept, _SCHEMA))
                    kept = []
                bar.update()
        writer.write_table(pa.Table.from_pylist(kept, _SCHEMA))


def read_reference(path: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (id, class map uint8 (H, W)) in the order they were written."""
    for batch in pq.ParquetFile(path).iter_batches(batch_size=64):
        for row in batch.to_pylist():
            yield row["id"], decode_annotation(row["prediction"])

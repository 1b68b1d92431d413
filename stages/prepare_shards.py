"""Write the train and validation splits of the data source as Parquet shards with a manifest."""

from segquant.base import config
from segquant.base.entry import run
from segquant.data.shards import write_shards
from segquant.data.sources import open_source
from stages import arguments


def main() -> None:
    a = arguments(__doc__, "output")
    params = config.load()
    params.wandb.resolve()
    data, on_error = params.data, params.eval.on_error
    sources = {
        "train": open_source(data, data.train_split, data.limit, on_error),
        "validation": open_source(data, data.validation_split, data.limit, on_error),
    }
    write_shards(sources, a.output, int(1e6 * data.shard_mb), on_error)


if __name__ == "__main__":
    run(main)

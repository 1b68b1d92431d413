"""Write the train and validation splits of the data source as Parquet shards with a manifest."""

import argparse

from segquant.base import config
from segquant.base.entry import run
from segquant.data.shards import write_shards
from segquant.data.sources import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    params = config.load()
    params.wandb.resolve()
    data = params.data
    sources = {
        "train": open_source(data, data.train_split, data.limit),
        "validation": open_source(data, data.validation_split, data.limit),
    }
    write_shards(sources, arguments.output, int(1e6 * data.shard_mb))


if __name__ == "__main__":
    run(main)

"""Read labelled images from their sources, store them as shards, and turn them into model inputs."""

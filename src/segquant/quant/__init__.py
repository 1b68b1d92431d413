"""Methods, bit packing and artifacts."""

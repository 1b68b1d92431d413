"""Recipes, quantization algorithms, bit packing and artifacts."""

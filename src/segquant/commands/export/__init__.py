"""Write a model in a format that other programs load."""

from segquant.commands.export import onnx, transformers

COMMANDS = (onnx, transformers)

"""`python -m segquant` is the segquant command."""

from segquant.cli import cli

cli()

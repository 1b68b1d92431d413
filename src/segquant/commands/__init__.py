"""The commands, one module each.

The first line of a module's docstring is the command's help, `options(parser)` adds its options, and `main(arguments)`
carries it out. A package lists its sub-commands in COMMANDS instead.
"""

from segquant.commands import (
    compare,
    evaluate,
    export,
    fetch_data,
    methods,
    predict,
    pt2e,
    report,
    review,
    run,
    sensitivity,
)

COMMANDS = (run, predict, methods, compare, report, review, sensitivity, export, pt2e, evaluate, fetch_data)

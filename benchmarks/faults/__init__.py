"""The parts of benchmarks/robustness.py: trials that hurt segquant, and what counts as having withstood them."""

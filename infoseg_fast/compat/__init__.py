"""Drop-in replacements for other packages, with this package's kernels.

Each module is independent, and nothing imports it before it is used. `torchmetrics` and `lightning`
need the packages of their extras.
"""

"""Stand-ins for other packages: their names and shapes, this package's kernels.

Each module stands alone, and nothing imports it before it is used. `torchmetrics` and `lightning`
need the packages of their extras.
"""

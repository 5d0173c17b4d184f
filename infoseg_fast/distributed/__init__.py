"""One run in several processes (ranks), as `torchrun` starts them. docs/distributed.md describes
it.
"""

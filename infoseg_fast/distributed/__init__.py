"""One run in several processes (ranks), which `torchrun` starts; see docs/distributed.md."""

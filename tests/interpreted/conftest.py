"""Tests of the Triton kernels themselves, run by tests/test_triton.py under TRITON_INTERPRET=1 and left out elsewhere."""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*"]

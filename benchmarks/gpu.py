"""`infoseg bench --device cuda` from a checkout, without an installation (make test-gpu)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from infoseg_fast.cli import main

sys.exit(main(["bench", "--device", "cuda", *sys.argv[1:]]))

"""`infoseg bench --device cuda` from a checkout, with nothing installed (make test-gpu)."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import infoseg_fast  # noqa: E402
from infoseg_fast.cli import main  # noqa: E402

if importlib.util.find_spec("infoseg_fast.kernels") is None:
    # An installation puts kernels/ inside the package; here it lies beside it.
    infoseg_fast.__path__.append(str(ROOT))

sys.exit(main(["bench", "--device", "cuda", *sys.argv[1:]]))

"""`make test-gpu`: tests and times on a GPU, from a checkout, without an installation."""

import os
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path.insert(0, ROOT)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))  # of its processes

from infoseg_fast.bench.first_hour import main  # noqa: E402

sys.exit(main())

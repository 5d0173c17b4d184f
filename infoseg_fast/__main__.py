"""`python -m infoseg_fast` is the command `infoseg`."""

import sys

from .cli import main

sys.exit(main())

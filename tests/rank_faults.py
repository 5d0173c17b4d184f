"""A recipe in which one rank fails in the first two starts of a run."""

import os
import signal

from infoseg_fast.recipe.paper import PaperRecipe

FAILS_AT = 7  # step


class Failing(PaperRecipe):
    """Rank 1 is killed in the first start, and does not go on in the second."""

    def after_step(self, step):
        super().after_step(step)
        if step != FAILS_AT or os.environ["RANK"] != "1":
            return
        start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        if start == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        elif start == 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun ends it at once
            while True:
                signal.pause()

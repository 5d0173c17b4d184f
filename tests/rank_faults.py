"""Recipes in which one rank fails in the first start of a run."""

import os
import signal

from infoseg_fast.recipe.paper import PaperRecipe

FAILS_AT = 7  # step


class Dying(PaperRecipe):
    """Rank 1 is killed."""

    def after_step(self, step):
        super().after_step(step)
        if step == FAILS_AT and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            self.fail()

    def fail(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Hanging(Dying):
    """Rank 1 does not go on."""

    def fail(self):
        os.kill(os.getpid(), signal.SIGSTOP)

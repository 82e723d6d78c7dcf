"""Work on a case that dies, hangs or fails. No torch here: the processes that work on cases have none."""

from __future__ import annotations

import os
import signal
import time

from medseg.case_work import CaseWork, Opened


class Fragile(CaseWork):
    """Dies, hangs or fails while it reads, as the case's name says; `once` only if nothing says that it did so."""

    def open(self) -> Opened:
        name, mark = self._job.case.id, self._job.output / "tried"
        if "slow" in name:
            time.sleep(0.5)
        if "hang" in name:
            time.sleep(600)
        if "die" in name or ("b-once" in name and not mark.exists()):
            mark.touch()
            os.abort()
        if "killer" in name and ("once" not in name or not mark.exists()):
            mark.touch()
            os.kill(os.getppid(), signal.SIGKILL)  # the process that asked: a worker of a cluster
            time.sleep(600)
        if "memory" in name:
            raise MemoryError
        return super().open()

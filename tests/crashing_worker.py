"""A worker whose process dies, as one does that runs out of memory."""

from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager

from fedward_client.worker import Job, Session


class Crashing:
    """A `Worker` that is killed when it opens a cohort."""

    def open(self, _: Job) -> AbstractContextManager[Session]:
        """Do not return."""
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

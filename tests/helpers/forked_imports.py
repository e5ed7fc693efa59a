"""What the process has imported that others are forked from. None of it starts a thread."""

import gc

gc.disable()

import domainclip.cli.main  # noqa: E402
import domainclip.pipelines  # noqa: E402, F401

gc.freeze()  # no search for garbage goes through these
gc.enable()

"""A process that exports a run whose file grows, until it is killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from domainclip.tracking.exporters import make_exporters
from domainclip.tracking.exporters.cursor import ExportsFile
from domainclip.tracking.exporters.run_files import RunReader
from domainclip.tracking.exporters.sender import Sender
from tracker_cases import append_rows, write_rows


def rows_from(step: int, to: int) -> list[dict[str, float]]:
    """What a deterministic training writes after ``step``."""
    return [
        {"step": each, "loss": 1 / each, "val_i2t_R@1": each / 7} if each % 4 == 0 else {"step": each, "loss": 1 / each}
        for each in range(step + 1, to + 1)
    ]


def export(folder: Path, name: str, step: int, last: int) -> None:
    """Go on from the checkpoint at ``step``: cut the file back, and train to ``last``."""
    write_rows(folder, rows_from(0, step))
    sender = Sender(name, make_exporters([name])[name], RunReader(folder), ExportsFile(folder / "exports.json"))
    print("ready", flush=True)
    for each in range(step, last):
        append_rows(folder, rows_from(each, each + 1))
        sender.send()
        time.sleep(0.005)
    sender.finish()


if __name__ == "__main__":
    export(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))

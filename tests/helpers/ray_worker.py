"""What an actor of the tests does, in a file that it can import."""

from __future__ import annotations

import os
import random
from pathlib import Path

from domainclip.retrieval.store.plan import Plan
from domainclip.retrieval.store.store import EmbeddingStore
from domainclip.retrieval.store.work import EmbeddingWork
from store_cases import FakeEncoder


class Worker:
    """Writes shards without a model; dies now and then."""

    def __init__(self, folder: Path, dies: float) -> None:
        self.work = EmbeddingWork(EmbeddingStore.open(folder), lease_seconds=30.0)
        plan = Plan.read(folder)
        assert plan is not None
        self.plan, self.dies = plan, dies

    def write(self, index: int) -> int:
        if random.random() < self.dies:
            os._exit(9)
        before = self.work.encoded
        self.work.write(self.plan, index, FakeEncoder())
        return self.work.encoded - before

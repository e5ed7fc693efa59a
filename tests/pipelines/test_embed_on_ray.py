"""A real Ray of this machine writes what one process writes, though its actors die."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from domainclip.errors import ConfigurationError
from domainclip.pipelines.embed_on_ray import run_on_ray
from domainclip.retrieval.store.plan import Plan
from domainclip.retrieval.store.store import EmbeddingStore
from domainclip.retrieval.store.work import EmbeddingWork
from ray_worker import Worker
from store_cases import SPACE, FakeEncoder, digest_of, embed, stored_rows

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="needs the extra 'ray': make test-extras installs it")
pytest.importorskip("ray.data", reason="needs the extra 'ray'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, object_store_memory=256 * 2**20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize("dies", [0.0, 0.1])
def test_actors_write_what_one_process_writes(cluster: None, tmp_path: Path, dies: float) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(40):
        (photos / f"{number:02d}.jpg").write_bytes(b"bad" if number == 3 else b"image %d" % number)
    embed(tmp_path / "one", stored_rows(photos), FakeEncoder(), shard_rows=2)
    work = EmbeddingWork(EmbeddingStore.create(tmp_path / "store", SPACE), lease_seconds=30.0)
    plan = work.plan(stored_rows(photos), digest_of, 2)
    assert plan is not None
    encoded = run_on_ray(partial(Worker, tmp_path / "store", dies), plan, 2, "local")
    missing = FakeEncoder()
    work.run(plan, missing)
    assert missing.seen == [], "the actors left nothing"
    assert encoded == 39 or dies
    one, store = (EmbeddingStore.open(tmp_path / name) for name in ("one", "store"))
    assert [path.read_bytes() for path in one.paths] == [path.read_bytes() for path in store.paths]
    assert store.generation.encoded == 39


def test_no_cluster_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(**_: object) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ConfigurationError, match="no Ray cluster at auto: nobody answers"):
        run_on_ray(lambda: None, Plan(1, 0, "", (), [], 1, 0, 0), 1, "auto")  # type: ignore[arg-type, return-value]

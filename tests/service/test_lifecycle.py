"""The service from its start to its end: another model under load, signals, a drain that loses nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import numpy as np
import pytest
from rich.console import Console

from domainclip.errors import BackendError, ConfigurationError, ModelLoadError
from domainclip.inference import ModelSession
from domainclip.inference.backends.golden import GoldenBatch
from domainclip.service.access import AccessKeys
from running_service import drawn_image, encoded, indexed_images, running_service, save_tiny_model

TEXT = {"input": "a red brick wall"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("served")
    return save_tiny_model(folder / "one"), save_tiny_model(folder / "two", seed=5)


def test_twenty_reloads_under_load_lose_nothing_and_mix_nothing(models: tuple[Path, Path]) -> None:
    wanted = {
        model.name: ModelSession.from_pretrained(model, Console(quiet=True)).encode_text("a red brick wall").numpy()[0]
        for model in models
    }
    assert float(np.dot(*wanted.values())) < 0.99
    parts = [{"text": "a red brick wall"}] * 2 + [{"image": encoded(drawn_image(3))}]
    stop = threading.Event()
    answered: set[str] = set()

    def ask(number: int) -> int:
        asked = 0
        while not stop.is_set():
            answer = service.post("/v1/embeddings", {"input": parts[number % 2 :]})
            assert answer.status_code == 200, answer.text
            found = answer.json()
            answered.add(found["model"])
            for each in found["data"][:-1]:
                np.testing.assert_allclose(each["embedding"], wanted[found["model"]], atol=1e-5)
            asked += 1
        return asked

    with running_service(models[0], keys=AccessKeys({}), cache_mb=1) as service, ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, number) for number in range(4)]
        for turn in range(20):
            service.do(service.service.reload(str(models[(turn + 1) % 2])))
        stop.set()
        assert sum(each.result() for each in asking) > 20
        assert answered == set(wanted)
        assert service.service.metrics.registry.get_sample_value("domainclip_reloads_total", {"outcome": "ok"}) == 20


def test_a_model_that_cannot_be_served_does_not_replace_the_one_that_is(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    spoilt = save_tiny_model(tmp_path / "spoilt", seed=9)
    golden = GoldenBatch.read(spoilt)
    assert golden is not None
    GoldenBatch(
        golden.fingerprint, golden.images, golden.ids, golden.image_embeds[::-1].copy(), golden.text_embeds
    ).write(spoilt)
    with running_service(models[0]) as service:
        before = service.post("/v1/embeddings", TEXT).json()
        with pytest.raises(BackendError, match="golden check"):
            service.do(service.service.reload(str(spoilt)))
        with pytest.raises(ModelLoadError):
            service.do(service.service.reload(str(tmp_path / "nowhere")))
        assert service.post("/v1/embeddings", TEXT).json() == before
        assert service.get("/health/ready").status_code == 200


def test_reloading_over_http_is_for_those_with_the_right_key(models: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("of-a-user-of-the-service\nof-its-administrator-alone admin\n")
    with running_service(models[0], keys=AccessKeys.read(file)) as service:
        asked = {"model": str(models[1])}

        def reload(key: str | None) -> httpx2.Response:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            return service.post("/admin/reload", asked, headers=headers)

        assert [reload(None).status_code, reload("of-a-user-of-the-service").status_code] == [401, 403]
        answer = reload("of-its-administrator-alone")
        assert answer.status_code == 200 and answer.json()["id"] == "two"
        asked["model"] = str(tmp_path / "nowhere")
        answer = reload("of-its-administrator-alone")
        assert answer.status_code == 422 and "nowhere" in answer.json()["error"]["message"]


def test_without_keys_nobody_reloads_over_http(models: tuple[Path, Path]) -> None:
    with running_service(models[0]) as service:
        assert service.post("/admin/reload", {}).status_code == 403


def test_an_index_of_another_model_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    index = indexed_images(models[0], tmp_path)
    with pytest.raises(ConfigurationError), running_service(models[1], index=index):
        pass
    with running_service(models[0], index=index) as service:
        found = service.post("/v1/search", {"image": encoded(drawn_image(2)), "top_k": 2}).json()
        assert Path(found["hits"][0]["image"]).name == "2.png" and found["hits"][0]["score"] > 0.9999
        found = service.post("/v1/search", {"text": "grass", "where": ["path~2.png"]}).json()
        assert [Path(hit["image"]).name for hit in found["hits"]] == ["2.png"]
        for asked in ({"text": "grass", "where": ["nonsense"]}, {"text": "grass", "where": ["label=none"]}):
            assert service.post("/v1/search", asked).json()["error"]["param"] == "where"
        with pytest.raises(ConfigurationError):
            service.do(service.service.reload(str(models[1])))
        assert service.post("/v1/search", {"text": "grass"}).status_code == 200


def test_a_service_without_an_index_says_so(models: tuple[Path, Path]) -> None:
    with running_service(models[0]) as service:
        answer = service.post("/v1/search", {"text": "grass"})
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "no_index"


@contextmanager
def process(model: Path, *options: str, **more: object) -> Iterator[subprocess.Popen[str]]:
    """The command itself; its first line says where it listens."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **dict(more.pop("env", {}))}  # type: ignore[call-overload]
    command = [sys.executable, "-m", "domainclip", "serve", "--model", str(model), "--device", "cpu", *options]
    started = subprocess.Popen(
        [*command, "backend=torch"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **more,  # type: ignore[call-overload]
    )
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            started.kill()
        started.wait()
        started.stderr.close()


def ready(url: str) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        with suppress(httpx2.TransportError):
            if httpx2.get(url + "/health/ready", verify=False).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("it is not ready")


@pytest.mark.slow
def test_a_signal_ends_the_service_when_what_was_accepted_is_answered(models: tuple[Path, Path]) -> None:
    with process(models[0], "--port", "0") as started:
        assert started.stderr is not None
        url = started.stderr.readline().split(" on ")[1].split()[0]
        threading.Thread(target=started.stderr.read, daemon=True).start()
        ready(url)
        failed: list[BaseException] = []
        answers = []

        def ask(seed: int) -> None:
            """Keeps its connection, and asks until it is told that this was the last answer."""
            with httpx2.Client(base_url=url, timeout=30, verify=False) as client:
                while True:
                    body = {"input": [encoded(drawn_image(seed + row)) for row in range(4)], "modality": "image"}
                    try:
                        answer = client.post("/v1/embeddings", json=body)
                    except httpx2.TransportError as error:
                        failed.append(error)
                        return
                    answers.append(answer.status_code)
                    if answer.headers.get("connection") == "close":
                        return
                    seed += 1000

        threads = [threading.Thread(target=ask, args=(10 * number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        started.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(30)
        assert started.wait(30) == 0
        assert failed == [] and set(answers) == {200} and len(answers) > 6


@pytest.mark.slow
def test_the_socket_may_be_handed_down_and_readiness_is_told(models: tuple[Path, Path], tmp_path: Path) -> None:
    """systemd's protocol, spoken by a shell that stays the same process: LISTEN_PID is its own number."""
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(tmp_path / "notify"))
    told.settimeout(90)
    number = listening.fileno()
    os.set_inheritable(number, True)
    script = (
        f"exec 3<&{number}; export LISTEN_FDS=1 LISTEN_PID=$$; "
        f"exec {sys.executable} -m domainclip serve --model {models[0]} --device cpu --log json backend=torch"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NOTIFY_SOCKET": str(tmp_path / "notify")}
    started = subprocess.Popen(
        ["bash", "-c", script], stderr=subprocess.PIPE, text=True, env=environment, pass_fds=[number]
    )
    try:
        states = [told.recv(4096).decode()]
        while not states[-1].startswith("READY=1"):
            states.append(told.recv(4096).decode())
        assert states[0].startswith("STATUS=")
        assert httpx2.post(url + "/v1/embeddings", json=TEXT, verify=False).status_code == 200
        started.send_signal(signal.SIGHUP)
        end = time.monotonic() + 60
        reloads = 'domainclip_reloads_total{outcome="ok"} 1.0'
        while reloads not in httpx2.get(url + "/metrics", verify=False).text:
            assert time.monotonic() < end
            time.sleep(0.2)
        started.send_signal(signal.SIGTERM)
        assert started.wait(30) == 0
        assert told.recv(4096).decode() == "STOPPING=1"
        assert started.stderr is not None
        lines = [line for line in started.stderr.read().splitlines() if line.startswith("{")]
        assert {json.loads(line)["level"] for line in lines} <= {"info", "warning"}
    finally:
        started.kill()
        started.wait()
        listening.close()
        told.close()


@pytest.mark.slow
def test_a_model_that_fails_its_golden_check_is_not_served(tmp_path: Path) -> None:
    spoilt = save_tiny_model(tmp_path / "spoilt", seed=3)
    golden = GoldenBatch.read(spoilt)
    assert golden is not None
    wrong = GoldenBatch(golden.fingerprint, golden.images, golden.ids, -golden.image_embeds, golden.text_embeds)
    wrong.write(spoilt)
    with process(spoilt, "--port", "0") as started:
        assert started.stderr is not None
        last = started.stderr.read().strip().splitlines()[-1]
        assert started.wait(10) == 2
        assert "golden check" in last

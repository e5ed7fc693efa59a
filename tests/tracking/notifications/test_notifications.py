"""Each message is told once, in order, by targets that fail, hang and come back; no secret is written anywhere."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import ConfigurationError
from domainclip.events import Event, ImageSkipped, Milestone, RunEnded, Warned
from domainclip.pipelines import run_training
from domainclip.tracking.notifications import notifications, targets_of
from domainclip.tracking.notifications import sender as sender_module
from domainclip.tracking.notifications.message import Digest, Message
from domainclip.tracking.notifications.queue import MESSAGES, MessageQueue
from domainclip.tracking.notifications.sender import Pauses, Sender
from domainclip.tracking.notifications.targets import NotSent, Target
from tiny_data import TinyData

SECRET = "xyzzy-secret-4711"
QUICK = Pauses(between=0.0, first=0.01, longest=0.05, end=5.0)


class Recorded:
    """A target that accepts or refuses as it is told to."""

    def __init__(self, answers: Iterator[bool] | None = None) -> None:
        self.name, self.answers = "recorded", answers
        self.digests: list[Digest] = []

    @property
    def numbers(self) -> list[int]:
        return [message.number for digest in self.digests for message in digest.messages]

    def send(self, digest: Digest) -> None:
        if self.answers is not None and not next(self.answers):
            raise NotSent("not now")
        self.digests.append(digest)


def warned(number: int) -> Warned:
    return Warned(text=f"warning {number}", step=number)


def message(number: int, **values: Any) -> Message:
    return Message(**{"number": number, "key": f"key {number}", "level": "warning", "text": "text", **values})


def run_with(target: Target, folder: Path, events: list[Event], level: str = "warning", pauses: Pauses = QUICK) -> None:
    with notifications([target], level, folder, "run", pauses=pauses) as listener:  # type: ignore[arg-type]
        for event in events:
            listener(event)


# --- what is told ---


def test_messages_are_of_the_level_that_is_wanted_and_the_end_always(tmp_path: Path) -> None:
    def milestone(name: str, level: str) -> Milestone:
        return Milestone(name=name, step=3, level=level, text=name, rule="", evidence={}, advice="")  # type: ignore[arg-type]

    events: list[Event] = [
        milestone("new_best", "info"),
        milestone("collapse", "warning"),
        warned(1),
        ImageSkipped(path="a", reason="b"),
        RunEnded(outcome="finished", text="The report is there"),
    ]
    target = Recorded()
    run_with(target, tmp_path, events)
    told = [each for digest in target.digests for each in digest.messages]
    assert [each.text for each in told] == [
        "step 3: collapse",
        "warning 1",
        "finished: The report is there 1 images could not be read and were skipped.",
    ]
    target = Recorded()
    run_with(target, tmp_path / "errors", events, level="error")
    assert [digest.title for digest in target.digests] == ["run: finished"]
    target = Recorded()
    run_with(target, tmp_path / "all", events, level="info")
    assert len(target.numbers) == 4


def test_an_event_that_comes_again_in_a_resumed_run_is_told_once(tmp_path: Path) -> None:
    target = Recorded()
    run_with(target, tmp_path, [warned(1), warned(2)])
    run_with(target, tmp_path, [warned(2), warned(3), RunEnded(outcome="failed", text="no")])
    assert target.numbers == [1, 2, 3, 4] and target.digests[-1].level == "error"


def test_one_message_a_minute_and_the_end_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(sender_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    queue, target = MessageQueue(tmp_path), Recorded()
    sender = Sender(target, queue, "run", "info", Pauses())
    assert sender._pause() is None
    queue.add(message(1))
    assert sender._pause() is not None and sender._pause() <= 0  # type: ignore[operator]
    sender.send_waiting()
    sender._due = now[0] + 60
    for number in (2, 3, 4):
        queue.add(message(number))
        assert sender._pause() == 60
    now[0] += 59
    assert sender._pause() == 1
    now[0] += 1
    assert sender._pause() == 0
    sender.send_waiting()
    assert [len(digest.messages) for digest in target.digests] == [1, 3]
    sender._due = now[0] + 60
    queue.add(message(5, last=True))
    assert sender._pause() == 0


# --- the queue ---


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["add", "accept", "refuse", "kill", "kill before record"]), max_size=40))
def test_whatever_happens_each_is_told_in_order_and_none_is_lost(steps: list[str]) -> None:
    """Beside a plain list. A kill between acceptance and record repeats messages, and nothing else does."""
    with tempfile.TemporaryDirectory() as folder:
        queue, told, added, repeats = MessageQueue(Path(folder)), [], 0, 0
        target = Recorded(iter(lambda: True, None))
        sender = Sender(target, queue, "run", "info", Pauses())
        for step in steps:
            if step == "add":
                added += 1
                queue.add(message(added))
            elif step == "kill":
                queue = MessageQueue(Path(folder))
                sender = Sender(target, queue, "run", "info", Pauses())
            elif step == "refuse":
                target.answers = iter([False])
                if len(queue) > sender._told:
                    with pytest.raises(NotSent):
                        sender.send_waiting()
            else:
                target.answers = None
                before = sender._told
                if step == "kill before record":
                    queue.note_told = lambda *_: None  # type: ignore[method-assign]
                sender.send_waiting()
                if step == "kill before record":
                    repeats += added - before
                    queue = MessageQueue(Path(folder))
                    sender = Sender(target, queue, "run", "info", Pauses())
        target.answers = None
        sender.send_waiting()
        told = target.numbers
        assert list(dict.fromkeys(told)) == list(range(1, added + 1))
        assert len(told) == added + repeats


def test_half_a_line_of_a_crash_costs_that_line_alone(tmp_path: Path) -> None:
    queue = MessageQueue(tmp_path)
    queue.add(message(1))
    with open(tmp_path / MESSAGES, "ab") as file:
        file.write(b'{"number": 2, "key"')
    queue = MessageQueue(tmp_path)
    assert [each.number for each in queue.after(0)] == [1]
    queue.add(message(2))
    assert [each.number for each in MessageQueue(tmp_path).after(0)] == [1, 2]


def test_a_queue_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "queue").write_text("a file")
    said: list[str] = []
    with notifications([Recorded()], "info", tmp_path / "queue", "run", said.append, QUICK) as listener:
        for number in range(3):
            listener(warned(number))
    assert len(said) == 1 and "cannot be written" in said[0]


# --- targets that fail ---


def test_a_target_that_refuses_and_comes_back_gets_each_once_in_order(tmp_path: Path) -> None:
    target = Recorded(iter([False, False, True, False, True, *[True] * 50]))
    run_with(target, tmp_path, [warned(number) for number in range(1, 6)])
    assert target.numbers == [1, 2, 3, 4, 5]


def test_a_target_that_hangs_holds_nothing_up_and_what_is_left_is_said(tmp_path: Path) -> None:
    class Hanging(Recorded):
        def send(self, digest: Digest) -> None:
            time.sleep(30)

    said: list[str] = []
    hanging, well = Hanging(), Recorded()
    hanging.name = "env:HANGING"
    began = time.monotonic()
    pauses = Pauses(between=0.0, first=0.01, longest=0.05, end=0.2)
    with notifications([hanging, well], "info", tmp_path / "notifications", "run", said.append, pauses) as listener:
        for number in range(1, 101):
            listener(warned(number))
        assert time.monotonic() - began < 5  # no call waits for a target
    assert time.monotonic() - began < 10
    assert well.numbers == list(range(1, 101))
    assert said == [
        f"100 messages to notify=env:HANGING could not be sent. They wait in {tmp_path / 'notifications'}: "
        f"`domainclip notify {tmp_path}` sends them"
    ]


def test_a_command_gets_json_and_no_shell_sees_its_words(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    script = tmp_path / "hook.py"
    script.write_text(f"import sys\nopen({str(out)!r}, 'w').write(sys.stdin.read())\n")
    (target,) = targets_of([f"command:{sys.executable} {script} '$(touch {tmp_path / 'pwned'})'"])
    hostile = '"; touch x; $(id) `id` \N{PILE OF POO}\x00\n'
    target.send(Digest("run", (message(1, text=hostile),)))
    assert json.loads(out.read_text())["messages"][0]["text"] == hostile
    assert not (tmp_path / "pwned").exists()
    (failing,) = targets_of([f"command:{sys.executable} -c 'import sys; sys.exit(3)'"])
    with pytest.raises(NotSent, match="ended with 3"):
        failing.send(Digest("run", (message(1),)))


def test_the_desktop_gets_texts_as_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "said"
    for name in ("notify-send", "osascript"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {said}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    hostile = '" & (do shell script "id") & "'
    for platform in ("linux", "darwin"):
        monkeypatch.setattr(sys, "platform", platform)
        (target,) = targets_of(["desktop"])
        target.send(Digest("run", (message(1, text=hostile),)))
        words = said.read_text().splitlines()
        assert words[-1] == f"1. warning: {hostile}" and words[-2] == "run: warning"
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="notify=desktop needs osascript"):
        targets_of(["desktop"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tgram://123:abc/456", "env:NAME or file:PATH"),
        ("env:DOMAINCLIP_NOT_SET", "the environment variable DOMAINCLIP_NOT_SET is not set"),
        ("file:/nowhere/url", "notify=file:/nowhere/url cannot be read"),
        ("command:/no/such/program now", "there is no program /no/such/program"),
        ("command:'", "cannot be read"),
        ("slack", "is no place to send messages to"),
        ("env:", "is no place to send messages to"),
    ],
)
def test_what_cannot_be_told_is_said_at_once(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text) as caught:
        targets_of([name])
    assert "123:abc" not in str(caught.value)


def test_a_url_that_apprise_does_not_know_is_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("apprise")
    monkeypatch.setenv("DOMAINCLIP_URL", f"nonsense://{SECRET}")
    with pytest.raises(ConfigurationError) as caught:
        targets_of(["env:DOMAINCLIP_URL"])
    assert SECRET not in str(caught.value)
    (tmp_path / "two").write_text("a b")
    with pytest.raises(ConfigurationError, match="has 2 words"):
        targets_of([f"file:{tmp_path / 'two'}"])


# --- real receivers ---


class Receiver:
    """An HTTP server whose answers are given one by one; the last one stays."""

    def __init__(self, answers: list[int | float], port: int = 0) -> None:
        self.answers, self.bodies = answers, []  # type: ignore[var-annotated]
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
                if isinstance(answer, float):
                    time.sleep(answer)
                    answer = 200
                if answer == 200:
                    receiver.bodies.append(body)
                self.send_response(answer)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.port = self.server.server_address[1]

    @property
    def lines(self) -> list[str]:
        return [line for body in self.bodies for line in body["message"].splitlines()]


@contextmanager
def receiver(*answers: int | float) -> Iterator[Receiver]:
    found = Receiver(list(answers))
    try:
        yield found
    finally:
        found.server.shutdown()


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_an_http_receiver_that_answers_500_and_is_slow_gets_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("apprise")
    with receiver(500, 200, 500, 0.3, 200) as http, caplog.at_level(logging.DEBUG):
        monkeypatch.setenv("DOMAINCLIP_URL", f"json://user:{SECRET}@127.0.0.1:{http.port}/")
        (target,) = targets_of(["env:DOMAINCLIP_URL"])
        events: list[Event] = [warned(number) for number in range(1, 8)]
        with notifications([target], "info", tmp_path, "run", pauses=QUICK) as listener:
            for event in events:
                listener(event)
                time.sleep(0.05)
        assert [line.split(".")[0] for line in http.lines] == [str(number) for number in range(1, 8)]
    assert SECRET not in caplog.text and SECRET.encode() not in all_bytes(tmp_path)


def test_a_receiver_that_is_down_at_first_gets_each_once_when_it_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("apprise")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("DOMAINCLIP_URL", f"json://127.0.0.1:{port}/")
    (target,) = targets_of(["env:DOMAINCLIP_URL"])
    with notifications([target], "info", tmp_path, "run", pauses=QUICK) as listener:
        for number in range(1, 4):
            listener(warned(number))
        time.sleep(0.3)
        assert MessageQueue(tmp_path).told(target.name) == 0
        http = Receiver([200], port)
        try:
            listener(warned(4))
            until = time.monotonic() + 20
            while MessageQueue(tmp_path).told(target.name) < 4 and time.monotonic() < until:
                time.sleep(0.05)
        finally:
            http.server.shutdown()
    assert [line.split(".")[0] for line in http.lines] == ["1", "2", "3", "4"]


@pytest.mark.slow
def test_a_real_run_tells_of_its_end_and_writes_no_secret(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("apprise")
    with receiver(200) as http, caplog.at_level(logging.DEBUG):
        monkeypatch.setenv("DOMAINCLIP_URL", f"json://user:{SECRET}@127.0.0.1:{http.port}/")
        config = CLIPFinetuningConfig(
            model_name="tiny",
            data_path=str(tiny_data.folder),
            output_dir=str(tmp_path / "run"),
            max_steps=4,
            batch_size=6,
            num_workers=0,
            notify=["env:DOMAINCLIP_URL"],
            notify_level="error",
        )
        run_training(config, console=Console(quiet=True))
        assert len(http.bodies) == 1 and http.bodies[0]["title"] == "run: finished"
        assert "The report is" in http.lines[0]
        with pytest.raises(ConfigurationError):
            run_training(config.updated(model_name=str(tmp_path), overwrite=False), console=Console(quiet=True))
    assert SECRET not in caplog.text and SECRET.encode() not in all_bytes(tmp_path)


@pytest.mark.slow
def test_mail_by_a_real_smtp_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("apprise")
    controller_module = pytest.importorskip("aiosmtpd.controller")
    mails: list[Any] = []

    class Handler:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            mails.append(envelope)
            return "250 OK"

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller = controller_module.Controller(Handler(), hostname="127.0.0.1", port=port)
    controller.start()
    try:
        monkeypatch.setenv(
            "DOMAINCLIP_URL", f"mailto://127.0.0.1:{port}/?from=run@example.org&to=me@example.org&mode=insecure"
        )
        (target,) = targets_of(["env:DOMAINCLIP_URL"])
        run_with(target, tmp_path, [warned(1), RunEnded(outcome="failed", text="the disk is full")])
    finally:
        controller.stop()
    from email import message_from_bytes, policy

    parsed = [message_from_bytes(mail.content, policy=policy.default) for mail in mails]
    assert parsed and all("run:" in str(each["Subject"]) for each in parsed)
    text = "\n".join(each.get_body(("plain", "html")).get_content() for each in parsed)  # type: ignore[union-attr]
    assert "1. warning: warning 1" in text and "failed: the disk is full" in text


CHILD = """
import sys, time
from pathlib import Path
from domainclip.events import Warned
from domainclip.tracking.notifications import notifications, targets_of
with notifications(targets_of([sys.argv[2]]), "info", Path(sys.argv[1]), "run") as listener:
    for number in range(1, 6):
        listener(Warned(text=f"warning {number}", step=number))
    print("queued", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_what_waits_when_a_process_is_killed_is_sent_by_the_command(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from domainclip.cli.main import app

    down = tmp_path / "down"
    down.write_text("")
    hook, out = tmp_path / "hook.sh", tmp_path / "out"
    hook.write_text(f"#!/bin/sh\ntest ! -e {down} && cat >> {out}\n")
    hook.chmod(0o755)
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(f"notify: ['command:{hook}']\n")
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(run / "notifications"), f"command:{hook}"], stdout=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdout.readline() == b"queued\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists()
    refused = CliRunner().invoke(app, ["notify", str(run)])
    assert refused.exit_code and not out.exists()
    down.unlink()
    sent = CliRunner().invoke(app, ["notify", str(run)])
    assert sent.exit_code == 0 and "5 messages sent" in sent.output
    assert [each["number"] for each in json.loads(out.read_text())["messages"]] == [1, 2, 3, 4, 5]
    again = CliRunner().invoke(app, ["notify", str(run)])
    assert "0 messages sent" in again.output
    tested = CliRunner().invoke(app, ["notify", "--test", f"command:{hook}"])
    assert "accepted" in tested.output

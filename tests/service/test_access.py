"""Who is let in, and that no key ever comes out again."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from domainclip.errors import ConfigurationError
from domainclip.service import access
from domainclip.service.access import KEYS_VARIABLE, AccessKeys
from domainclip.service.logs import JsonFormatter
from running_service import Running, running_service, save_tiny_model

USER, ADMIN, WRONG = "a-key-of-a-user-0123", "a-key-of-an-admin-456", "a-key-of-nobody-78901"
CLOSED = ["/metrics", "/dashboard/events", "/v1/models", "/openapi.json", "/nowhere", "/health/livex", "/health"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "keys").write_text(f"# ours\n{USER}\n\n{ADMIN} admin  # the operator's\n")
    with running_service(save_tiny_model(folder / "model"), keys=AccessKeys.read(folder / "keys")) as running:
        yield running


def basic(key: str, user: str = "any") -> str:
    return "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()


def status(
    service: Running, method: str, path: str, headers: dict[str, str] | list[tuple[str, str]]
) -> httpx2.Response:
    return httpx2.request(
        method, service.url + path, headers=headers, json={"input": "a"} if method == "POST" else None
    )


@pytest.mark.parametrize("key", [USER, ADMIN])
def test_a_known_key_is_let_in_by_every_way(service: Running, key: str) -> None:
    ways = [
        *(("authorization", f"{scheme} {key}") for scheme in ("Bearer", "bearer", "BEARER", "Bearer ")),
        *(("authorization", basic(key, user)) for user in ("any", "")),
        ("x-api-key", key),
    ]
    for name, value in ways:
        for method, path in (("POST", "/v1/embeddings"), ("GET", "/metrics"), ("GET", "/v1/models")):
            assert status(service, method, path, {name: value}).status_code == 200, (name, value, path)


def test_any_other_key_is_not(service: Running) -> None:
    values = [
        {},
        *({"authorization": value} for value in ("", "Bearer", f"Bearer {WRONG}", USER, f"Token {USER}", "Basic")),
        *(
            {"authorization": f"Bearer {key}"}
            for key in (USER[:-1], USER + "x", USER.upper(), f"{USER} admin", f'"{USER}"')
        ),
        *({"authorization": value} for value in (basic(WRONG), f"Basic {USER}", "Basic ====", basic(USER)[:-2] + "!!")),
        *({"x-api-key": value} for value in ("", WRONG, f"Bearer {USER}")),
        {"cookie": f"key={USER}"},
    ]
    for headers in values:
        answer = status(service, "POST", "/v1/embeddings", headers)
        assert answer.status_code == 401, headers
        assert answer.json()["error"] == {
            "message": "Send a known API key as: Authorization: Bearer KEY.",
            "type": "authentication_error",
            "code": "invalid_api_key",
            "param": None,
        }
        assert answer.headers["www-authenticate"]
    assert status(service, "GET", f"/metrics?api_key={USER}", {}).status_code == 401
    for path in CLOSED:
        assert status(service, "GET", path, {}).status_code == 401, path


def test_health_and_the_page_itself_are_open(service: Running) -> None:
    for path in ("/health/live", "/health/ready", "/dashboard"):
        for headers in ({}, {"authorization": f"Bearer {WRONG}"}):
            assert status(service, "GET", path, headers).status_code == 200


def test_only_an_admin_reloads(service: Running) -> None:
    for path in ("/admin/reload", "/admin/", "/admin/other"):
        assert status(service, "POST", path, {}).status_code == 401
        answer = status(service, "POST", path, {"x-api-key": USER})
        assert answer.status_code == 403 and answer.json()["error"]["type"] == "permission_error"
        assert status(service, "POST", path, {"x-api-key": ADMIN}).status_code in (404, 422)  # asked for nonsense
    headers = {"x-api-key": ADMIN}
    assert httpx2.post(service.url + "/admin/reload", headers=headers, json={}, timeout=60).status_code == 200


def test_no_key_is_in_a_log_an_error_or_a_metric(service: Running, caplog: pytest.LogCaptureFixture) -> None:
    keys = (USER, ADMIN, WRONG)
    seen = []
    with caplog.at_level(logging.DEBUG):
        for key in keys:
            for headers in ({"authorization": f"Bearer {key}"}, {"authorization": basic(key)}, {"x-api-key": key}):
                for method, path in (
                    ("POST", "/v1/embeddings"),
                    ("GET", "/metrics"),
                    ("POST", "/admin/reload"),
                    ("GET", "/x"),
                ):
                    answer = status(service, method, path, headers)
                    seen.append(f"{answer.headers} {answer.text}")
    seen += [JsonFormatter().format(record) for record in caplog.records]
    seen += [repr(vars(record)) for record in caplog.records if record.name.startswith(("domainclip", "uvicorn"))]
    headers = {"x-api-key": ADMIN}
    seen += [service.get(path, headers=headers).text for path in ("/metrics", "/openapi.json", "/health/ready")]
    seen += [repr(service.service.settings), str(service.service.recent.snapshot(60))]
    for key in keys:
        for form in (key, basic(key).split()[1]):
            own = [text for text in seen if form in text and "httpx" not in text]
            assert own == []


def test_keys_are_kept_as_digests_and_compared_in_constant_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{USER}\n{ADMIN} admin\n")
    keys = AccessKeys.read(file)
    assert USER not in repr(keys) and all(len(digest) == 32 for digest in keys.digests)
    compared: list[tuple[int, int]] = []
    inner = access.hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return inner(one, other)

    monkeypatch.setattr(access.hmac, "compare_digest", compare)
    for key, role in (
        (USER, "user"),
        (ADMIN, "admin"),
        (WRONG, None),
        ("x", None),
        (USER[:-1], None),
        ("x" * 9999, None),
    ):
        compared.clear()
        assert keys.role({"x-api-key": key}) == role
        assert compared == [(32, 32)] * 2  # whatever is given, all keys, digests of one length


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no API key"),
        ("# nothing\n\n", "holds no API key"),
        ("short\n", "line 1: a key has at least 16"),
        (f"{USER}\n\n{ADMIN} root\n", "line 3: a key"),
        (f"{USER} admin admin\n", "line 1: a key"),
        (f"{USER} {ADMIN}\n", "line 1: a key"),
        ("schlüssel-der-tür-0123\n", "line 1: a key has at least 16 ASCII"),
    ],
)
def test_a_file_that_is_wrong_is_said_so_without_its_keys(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=said) as caught:
        AccessKeys.read(file)
    assert not any(word in str(caught.value) for word in (USER, ADMIN, "short", "schlüssel"))
    assert str(file) in str(caught.value)


def test_a_file_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    for path, content in ((tmp_path / "none", None), (tmp_path, None), (tmp_path / "bytes", b"\xff\xfe" * 20)):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigurationError, match="cannot be read"):
            AccessKeys.read(path)


def test_comments_line_ends_and_marks_of_an_editor(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(f"\ufeff{USER}\r\n   {ADMIN}\tadmin # the one\r\n#{WRONG}\r\na-key#with-a-hash-0\r\n".encode())
    keys = AccessKeys.read(file)
    found = [keys.role({"x-api-key": key}) for key in (USER, ADMIN, WRONG, f"#{WRONG}", "a-key#with-a-hash-0")]
    assert found == ["user", "admin", None, None, "user"]


def test_the_environment_is_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    assert not AccessKeys.read(None)
    monkeypatch.setenv(KEYS_VARIABLE, f"{USER}, {ADMIN} admin")
    keys = AccessKeys.read(None)
    assert [keys.role({"x-api-key": key}) for key in (USER, ADMIN, WRONG)] == ["user", "admin", None]
    for value, said in ((",", "no API key"), ("short", "DOMAINCLIP_API_KEYS, line 1")):
        monkeypatch.setenv(KEYS_VARIABLE, value)  # whoever sets it does not want everybody let in
        with pytest.raises(ConfigurationError, match=said):
            AccessKeys.read(None)


# The log


def lines(records: list[logging.LogRecord]) -> list[dict[str, object]]:
    return [json.loads(line) for record in records for line in JsonFormatter().format(record).splitlines()]


@pytest.mark.parametrize(
    ("path", "request_id"),
    [
        ("/x%0a%7b%22level%22%3a%22error%22%7d", "a\tb"),
        ("/x%0d%0aFAKE%20line", '"}\\u000a{"'),
        ("/%ff%ed%a0%80%00", "é"),
        ("/" + "x" * 3000, "x" * 500),
        (
            "/\u2028".encode().decode("latin-1").replace("\x80", "%80").replace("\xe2", "%e2").replace("\xa8", "%a8"),
            "a b",
        ),
    ],
)
def test_a_request_is_one_line_of_the_log(
    service: Running, caplog: pytest.LogCaptureFixture, path: str, request_id: str
) -> None:
    with caplog.at_level(logging.INFO, logger="domainclip.requests"):
        headers = [(b"x-request-id", request_id.encode("latin-1")), (b"x-api-key", USER.encode())]
        answer = httpx2.get(service.url + path, headers=headers)
        service.until(lambda: [each for each in caplog.records if each.name == "domainclip.requests"])
    own = [record for record in caplog.records if record.name == "domainclip.requests"]
    assert len(own) == 1 and "\n" not in own[0].getMessage() and len(own[0].getMessage()) < 400
    (line,) = lines(own)
    assert line["request_id"] == answer.headers["x-request-id"] != request_id
    assert line["status"] == answer.status_code == 404 and line["level"] == "info" and line["method"] == "GET"
    assert {"time", "logger", "message", "path", "ms", "queue_ms", "rows", "cached"} <= set(line)
    assert str(line["path"]).isascii() and str(line["path"]).isprintable()


@pytest.mark.parametrize(
    "value", ["a\nb", "\ud800", "\0", 2**80, float("nan"), object(), {1: 2}, b"\xff", Path("\udcff")]
)
def test_whatever_an_event_brings_along_is_one_line_of_json(value: object) -> None:
    record = logging.makeLogRecord(
        {"name": "x", "levelname": "INFO", "msg": "%s", "args": (str(value),), "extra": value}
    )
    try:
        raise ValueError(str(value))
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    text = JsonFormatter().format(record)
    assert len(text.splitlines()) == 1 and text.encode()
    found = json.loads(text)
    assert found["message"] == str(value) and "ValueError" in found["exception"]

"""Images by URL: from allowed hosts at public addresses alone, at the very address that was checked."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import shutil
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("httpcore2", reason="fetching images by URL needs the extra serve")

from domainclip.errors import ConfigurationError
from domainclip.service.fetch import AllowedHost, UrlFetcher, is_public
from domainclip.service.images import ImageInputError, ImageLimits

IMAGE = b"\x89PNG the bytes of an image" * 100
NAME = "images.example.org"


@dataclass
class Server:
    """An HTTP server of this machine that keeps what it was asked."""

    answer: Callable[[str], bytes | Awaitable[bytes]]
    port: int = 0
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    """What TLS was asked for (SNI)."""
    open: int = 0
    most_open: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            path = first.split()[1]
            self.requests.append((path, dict(line.lower().split(": ", 1) for line in lines)))
            answer = self.answer(path)
            writer.write(answer if isinstance(answer, bytes) else await answer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


def response(body: bytes = IMAGE, status: str = "200 OK", **headers: str) -> bytes:
    said = {"Content-Length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in said.items() if value), "", ""]
    return "\r\n".join(lines).encode() + body


def redirect(location: str) -> bytes:
    return response(b"", "302 Found", Location=location)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of ``NAME`` that nobody but the tests trusts, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here makes a certificate")
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(made), "-days", "2", "-subj", f"/CN={NAME}"]
    subprocess.run([*command, "-addext", f"subjectAltName=DNS:{NAME}"], check=True, capture_output=True)
    return made, key


@asynccontextmanager
async def serving(answer: Callable[[str], bytes | Awaitable[bytes]], certificate: tuple[Path, Path] | None = None):
    server, context = Server(answer), None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        context.sni_callback = lambda _, name, __: server.names.append(name)
    listening = await asyncio.start_server(server, "127.0.0.1", ssl=context)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


def resolver(*answers: Sequence[str]) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    """One answer after the other, the last one again and again."""
    left = list(answers)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


def fetcher(*allowed: str, limits: ImageLimits | None = None, public: bool = True, **options) -> UrlFetcher:
    """One whose resolver says 127.0.0.1, which counts as public here."""
    options.setdefault("resolve", resolver(["127.0.0.1"]))
    if public:
        options.setdefault("is_public", lambda address: address == "127.0.0.1")
    return UrlFetcher(allowed, limits or ImageLimits(), **options)


def fetched(answer: Callable[[str], bytes | Awaitable[bytes]], path: str = "/a.png", **options) -> bytes:
    async def run() -> bytes:
        async with serving(answer) as server:
            return await fetcher(f"http://{NAME}:{server.port}", **options).fetch(f"http://{NAME}:{server.port}{path}")

    return asyncio.run(run())


def refused(url: str, *allowed: str, **options) -> tuple[str, str]:
    with pytest.raises(ImageInputError) as caught:
        asyncio.run(fetcher(*allowed, **options).fetch(url))
    return caught.value.code, str(caught.value)


def test_over_tls_with_the_name_and_at_the_address(certificate: tuple[Path, Path]) -> None:
    async def run() -> None:
        async with serving(lambda path: response(), certificate) as server:
            trusting = ssl.create_default_context(cafile=str(certificate[0]))
            found = fetcher(f"{NAME}:{server.port}", ssl_context=trusting)
            assert await found.fetch(f"https://{NAME}:{server.port}/a%20b.png?signature=x#part") == IMAGE
            path, headers = server.requests[0]
            assert path == "/a%20b.png?signature=x"
            assert headers["host"] == f"{NAME}:{server.port}" and headers["accept-encoding"] == "identity"
            assert server.names == [NAME]
            assert not {"cookie", "authorization", "referer"} & set(headers)
            for distrusting in (fetcher(f"*.example.org:{server.port}"),):  # the system's certificates
                with pytest.raises(ImageInputError, match="certificate") as caught:
                    await distrusting.fetch(f"https://{NAME}:{server.port}/a.png")
                assert caught.value.code == "url_failed"
            other = fetcher(f"other.example.org:{server.port}", ssl_context=trusting)
            with pytest.raises(ImageInputError, match="certificate"):  # of another name
                await other.fetch(f"https://other.example.org:{server.port}/a.png")

    asyncio.run(run())


def test_off_without_an_allowed_host() -> None:
    code, message = refused("https://example.org/a.png")
    assert code == "url_not_allowed" and "turned off" in message


@pytest.mark.parametrize(
    "url",
    [
        "https://other.org/a.png",
        "https://example.org/a.png",
        "https://images.example.org.evil.org/a.png",
        "https://evilexample.org/a.png",
        "http://images.example.org/a.png",
        "https://images.example.org:8443/a.png",
        "https://images.example.org@evil.org/a.png",
        "https://user:secret@images.example.org/a.png",
        "https://evil.org\\@images.example.org/a.png",
        "https://evil.org#@images.example.org/",
        "https://evil.org?@images.example.org/",
        "ftp://images.example.org/a.png",
        "file:///etc/passwd",
        "gopher://images.example.org/",
        "//images.example.org/a.png",
        "images.example.org/a.png",
        "https:images.example.org",
        "https:///a.png",
        "",
        "https://images.example.org\r\nHost: evil/",
        "https://images.example.org./a.png",
        "https://images.example.org%00.evil.org/",
        "https://images.example.org:99999/",
        "https://images.example.org:-1/",
        "https://" + "a" * 5000,
        "\ud800",
    ],
)
def test_what_is_not_of_an_allowed_host(url: str) -> None:
    network_is_not_used = resolver(["127.0.0.1"])
    assert refused(url, "images.example.org", resolve=network_is_not_used)[0] == "url_not_allowed"


ADDRESSES = [
    *("127.0.0.1", "2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "127.1", "0", "0.0.0.0", "[::1]", "[::]"),
    *("[::ffff:127.0.0.1]", "[fe80::1%25eth0]", "[64:ff9b::7f00:1]", "169.254.169.254", "[fd00:ec2::254]"),
    *("①②⑦.0.0.1", "127。0。0。1", "8.8.8.8", "1.1"),
]


@pytest.mark.parametrize("host", ADDRESSES)
def test_no_address_is_a_name(host: str) -> None:
    assert refused(f"http://{host}/latest/meta-data/", "*.example.org", "http://localhost")[0] == "url_not_allowed"
    with pytest.raises(ConfigurationError):
        AllowedHost.parse(host)


@given(st.integers(0, 2**32 - 1))
def test_addresses_in_any_spelling_are_not_of_a_host(number: int) -> None:
    a, b, c, d = number.to_bytes(4, "big")
    spellings = (f"{number}", f"{number:#x}", f"0{number:o}", f"{a}.{b}.{c}.{d}", f"{a:#x}.{number & 0xFFFFFF}")
    spellings += (f"0{a:o}.0{b:o}.0{c:o}.0{d:o}", f"{a}.{b}.{number & 0xFFFF}", f"[::ffff:{a}.{b}.{c}.{d}]")
    for host in spellings:
        with pytest.raises(ConfigurationError):
            AllowedHost.parse(host)


@pytest.mark.parametrize(
    "entry", ["*", "*.org", "*.*.org", "a*.example.org", "https://a.org/path", "a.org:0", "a.org:99999"]
)
def test_what_is_no_entry(entry: str) -> None:
    with pytest.raises(ConfigurationError, match="no host that images can be fetched from"):
        AllowedHost.parse(entry)


def test_entries() -> None:
    assert AllowedHost.parse(" Images.Example.org ") == AllowedHost("https", "images.example.org", 443)
    assert AllowedHost.parse("http://a.org") == AllowedHost("http", "a.org", 80)
    below = AllowedHost.parse("*.example.org:8443")
    assert below.allows("https", "a.b.example.org", 8443)
    for scheme, host, port in (
        ("https", "example.org", 8443),
        ("https", "a.example.org", 443),
        ("http", "a.example.org", 8443),
    ):
        assert not below.allows(scheme, host, port)


PRIVATE = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1"),
    *("203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "192.88.99.1", "168.63.129.16"),
    *("::", "::1", "::ffff:8.8.8.8", "::ffff:127.0.0.1", "::8.8.8.8", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "100::1"),
    *("2001::1", "2001:db8::1", "2002:7f00:1::1", "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254"),
    *("fe80::1", "fe80::1%eth0", "2606:4700::1%eth0", "fec0::1", "ff02::1", "ff0e::1", "", "localhost", "8.8.8", "1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_not_public(address: str) -> None:
    assert not is_public(address)
    code, message = refused(f"https://{NAME}/", NAME, resolve=resolver([address]), public=False)
    assert code == "url_not_allowed" and "not public" in message
    # Nor beside a public one.
    mixed = resolver(["8.8.8.8", address])
    assert refused(f"https://{NAME}/", NAME, resolve=mixed, public=False)[0] == "url_not_allowed"


@given(st.ip_addresses())
def test_what_is_public_is_global_to_the_standard_library(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if is_public(str(address)):
        assert address.is_global and not (address.is_multicast or address.is_reserved or address.is_link_local)
        assert getattr(address, "ipv4_mapped", None) is None and getattr(address, "sixtofour", None) is None


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "100.63.255.255", "172.32.0.1", "2606:4700:4700::1111"])
def test_public(address: str) -> None:
    assert is_public(address)


def test_a_name_that_changes_its_address_reaches_nothing_new() -> None:
    """DNS rebinding: public when it is checked, loopback a moment later."""

    async def run() -> None:
        async with serving(lambda path: response(b"secret")) as inside, serving(lambda path: response()) as outside:
            asked: list[str] = []

            async def resolve(host: str, port: int) -> list[str]:
                asked.append(host)
                return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

            allowed = (f"http://{NAME}:{outside.port}", f"http://{NAME}:{inside.port}")
            found = fetcher(*allowed, resolve=resolve)
            assert await found.fetch(f"http://{NAME}:{outside.port}/") == IMAGE
            assert asked == [NAME]  # once: nothing asks again between the check and the connection
            with pytest.raises(ImageInputError, match="not public"):
                await found.fetch(f"http://{NAME}:{inside.port}/")
            assert not inside.requests

    asyncio.run(run())


def test_next_address_where_one_does_not_answer() -> None:
    both = {"resolve": resolver(["127.0.0.9", "127.0.0.1"]), "is_public": lambda address: True}
    assert fetched(lambda path: response(), **both) == IMAGE


def test_redirects() -> None:
    pages = {"/a": redirect("/b"), "/b": redirect("c?x=1#y"), "/c?x=1": redirect("/d"), "/d": response()}
    assert fetched(lambda path: pages[path], "/a") == IMAGE
    with pytest.raises(ImageInputError, match="redirected more than 3 times") as caught:
        fetched(lambda path: redirect(path + "a"))
    assert caught.value.code == "url_failed"


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://evil.org/",
        "//evil.org/",
        "https://images.example.org/",  # allowed without encryption alone, and at another port
        "http://images.example.org:22/",
        "http://a@images.example.org/",
        "file:///etc/passwd",
    ],
)
def test_no_redirect_leads_out(location: str) -> None:
    with pytest.raises(ImageInputError) as caught:
        fetched(lambda path: redirect(location))
    assert caught.value.code == "url_not_allowed"


def test_a_redirect_is_resolved_and_checked_as_well() -> None:
    with pytest.raises(ImageInputError, match="not public"):
        fetched(lambda path: redirect("/b"), resolve=resolver(["127.0.0.1"], ["10.0.0.1"]))


LARGE = ImageLimits(max_bytes=10_000)


@pytest.mark.parametrize(
    "answer",
    [
        response(bytes(10_001)),
        response(b"", Content_Length="99999999999"),
        response(bytes(10_001), Content_Length=""),
        response(b"2711\r\n" + bytes(0x2711) + b"\r\n0\r\n\r\n", Content_Length="", Transfer_Encoding="chunked"),
    ],
)
def test_size_is_counted_as_it_comes(answer: bytes) -> None:
    with pytest.raises(ImageInputError) as caught:
        fetched(lambda path: answer, limits=LARGE)
    assert caught.value.code == "image_too_large"


def test_size_that_is_allowed() -> None:
    assert len(fetched(lambda path: response(bytes(10_000)), limits=LARGE)) == 10_000
    assert len(fetched(lambda path: response(bytes(10_000), Content_Length=""), limits=LARGE)) == 10_000
    assert fetched(lambda path: response(Content_Type="text/html")) == IMAGE  # its bytes say what it is


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (response(b"", "404 Not Found"), "status 404"),
        (response(IMAGE, "206 Partial Content"), "status 206"),
        (response(b"", "304 Not Modified"), "status 304"),
        (response(b"", "302 Found"), "status 302"),
        (response(b""), "sends nothing"),
        (response(gzip.compress(IMAGE), Content_Encoding="gzip"), "compressed"),
        (redirect("http://a.org:port/"), "no URL"),
        (response(IMAGE)[:-10], ""),
        (b"", "disconnected"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", ""),
        (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"a" * 200_000, ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", ""),
    ],
)
def test_what_a_host_answers_otherwise(answer: bytes, said: str) -> None:
    with pytest.raises(ImageInputError) as caught:
        fetched(lambda path: answer, "/secret-path?token=secret")
    assert caught.value.code == "url_failed"
    assert said in str(caught.value) and "secret" not in str(caught.value)


def test_unknown_name_and_closed_port() -> None:
    async def unknown(host: str, port: int) -> list[str]:
        raise OSError("Name or service not known")

    assert refused(f"https://{NAME}/", NAME, resolve=unknown)[0] == "url_failed"
    assert refused(f"https://{NAME}/", NAME, resolve=resolver([]))[0] == "url_failed"
    assert refused(f"http://{NAME}:1/", f"http://{NAME}:1")[0] == "url_failed"


def test_the_systems_resolver_and_the_real_check() -> None:
    code, message = refused("http://localhost/", "http://localhost", resolve=None, public=False)
    assert code == "url_not_allowed" and "not public" in message


def test_no_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetched(lambda path: response()) == IMAGE


async def never(path: str) -> bytes:
    await asyncio.sleep(60)
    return b""


def test_deadline_of_the_whole() -> None:
    begin = time.monotonic()
    with pytest.raises(ImageInputError, match=r"within 0\.2 seconds") as caught:
        fetched(never, timeout=0.2)
    assert caught.value.code == "url_failed"

    async def resolve(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    assert refused(f"https://{NAME}/", NAME, resolve=resolve, timeout=0.2)[0] == "url_failed"
    assert time.monotonic() - begin < 30


def test_so_many_at_a_time() -> None:
    async def run() -> None:
        waiting, release = asyncio.Event(), asyncio.Event()

        async def held(path: str) -> bytes:
            if server.open == 2:
                waiting.set()
            await release.wait()
            return response()

        async with serving(held) as server:
            found = fetcher(f"http://{NAME}:{server.port}", concurrency=2)
            tasks = [asyncio.create_task(found.fetch(f"http://{NAME}:{server.port}/{n}")) for n in range(6)]
            await waiting.wait()
            tasks[0].cancel()  # a client that leaves
            release.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert results[1:] == [IMAGE] * 5 and isinstance(results[0], asyncio.CancelledError)
            assert server.most_open <= 3  # the one that was left may still be closing

    asyncio.run(run())

"""Images by URL: only from hosts that are allowed by name, only from public addresses, and only so much in so long.

What a client names, the server fetches from where the server stands: without these checks a request reads what only the
server reaches, as the credentials of a cloud's machine at 169.254.169.254 (server-side request forgery). A name is
resolved once, and the connection goes to the very address that was checked, since a name may mean another address a
moment later (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from domainclip.errors import ConfigurationError, MissingExtraError
from domainclip.service.images import ImageInputError, ImageLimits

try:
    import httpcore2
    import httpx2
except ImportError:
    raise MissingExtraError("httpx2", "serve", "Fetching images by URL") from None

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""From a host's name and a port to its addresses."""

MOST_REDIRECTS = 3
_REDIRECTS = {301, 302, 303, 307, 308}
_PORTS = {"https": 443, "http": 80}
_LONGEST_URL = 4096
_HEADERS = (
    ("Accept", "image/*"),
    ("Accept-Encoding", "identity"),
    ("User-Agent", "domainclip"),
    ("Connection", "close"),
)

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = rf"(?:{_LABEL}\.)*[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?"
_HOST = re.compile(_NAME)
"""A name in ASCII whose last label begins with a letter: no address in any spelling (2130706433, 0x7f.1, [::1])."""
_ENTRY = re.compile(rf"(?:(https?)://)?({_NAME}|\*\.{_LABEL}\.{_NAME})(?::(\d{{1,5}}))?")

_NOT_PUBLIC: tuple[IPv4Network | IPv6Network, ...] = tuple(
    ip_network(block)
    for block in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # a public number that inside Azure is each machine's host
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)
"""IANA's special-purpose registries (RFC 6890), multicast and reserved blocks. Of IPv6 everything outside 2000::/3 is
refused as well, and with it addresses that stand for one of IPv4 (mapped ones, 64:ff9b::/96)."""
_GLOBAL_UNICAST = ip_network("2000::/3")


def is_public(address: str) -> bool:
    """Whether an address is of a machine on the public internet.

    Args:
        address: Of IPv4 or IPv6, as a resolver gives it.

    Returns:
        False for loopback, link-local, private, shared, reserved and multicast addresses, for those that carry another
        address (6to4, Teredo, NAT64, IPv4-mapped), for ones with a zone, and for what is no address.
    """
    try:
        found = ip_address(address)
    except ValueError:
        return False
    if found.version == 6 and ("%" in address or found not in _GLOBAL_UNICAST):
        return False
    return not any(found in block for block in _NOT_PUBLIC)


@dataclass(frozen=True)
class AllowedHost:
    """A host from which images are fetched; of ``*.example.org`` any name that ends in it."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, entry: str) -> AllowedHost:
        """Read an entry of the allow-list.

        Args:
            entry: ``images.example.org`` or ``*.example.org``, with ``:8443`` for another port, and with ``http://`` in
                front for a host that is asked without encryption.

        Returns:
            The host.

        Raises:
            ConfigurationError: It is none of these.
        """
        found = _ENTRY.fullmatch(entry.strip().lower())
        if found is None or (found[3] and not 0 < int(found[3]) < 2**16):
            raise ConfigurationError(
                f"{entry!r} is no host that images can be fetched from: give a name such as images.example.org, "
                "*.example.org, images.example.org:8443, or http://images.example.org for one without encryption"
            )
        scheme = found[1] or "https"
        return cls(scheme, found[2], int(found[3] or _PORTS[scheme]))

    def allows(self, scheme: str, host: str, port: int) -> bool:
        """Whether a URL is of this host.

        Args:
            scheme: ``https`` or ``http``.
            host: In small letters.
            port: As the URL has it, or the scheme's own.

        Returns:
            Whether all three agree.
        """
        named = host.endswith(self.host[1:]) if self.host.startswith("*") else host == self.host
        return named and (scheme, port) == (self.scheme, self.port)


class UrlFetcher:
    """Fetches images from allowed hosts, some at a time.

    Args:
        allowed: Entries as ``AllowedHost.parse`` takes them; without any, nothing is fetched.
        limits: ``max_bytes`` is heeded while the bytes come in.
        timeout: Seconds for one image, waiting for its turn, redirects and all.
        concurrency: Images that are fetched at a time.
        ssl_context: Which certificates are trusted; the system's, if left out.
        resolve: Finds the addresses of a host; the system's resolver, if left out.
        is_public: Which addresses may be connected to.

    Raises:
        ConfigurationError: An entry is no host.
    """

    def __init__(
        self,
        allowed: Iterable[str],
        limits: ImageLimits,
        *,
        timeout: float = 10.0,
        concurrency: int = 8,
        ssl_context: ssl.SSLContext | None = None,
        resolve: Resolve | None = None,
        is_public: Callable[[str], bool] = is_public,
    ) -> None:
        self.allowed = tuple(AllowedHost.parse(entry) for entry in allowed)
        self.limits = limits
        self.timeout = timeout
        self._waits = {"timeout": {"connect": timeout / 3}}  # a host's second address has its turn after a dead one
        self._turn = asyncio.Semaphore(concurrency)
        # Threads of its own: a name server that does not answer keeps them, and nobody else's.
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="resolve")
        self._ssl = ssl_context or httpcore2.default_ssl_context()
        self._network = _CheckedNetwork(resolve or self._resolve, is_public)

    async def fetch(self, url: str) -> bytes:
        """The content behind a URL, which may be anything.

        Args:
            url: Of an image.

        Returns:
            Its bytes, one at least and at most ``limits.max_bytes``.

        Raises:
            ImageInputError: ``url_not_allowed``, ``url_failed`` or ``image_too_large``.
        """
        try:
            async with asyncio.timeout(self.timeout), self._turn:
                for _ in range(MOST_REDIRECTS + 1):
                    found = await self._get(self._checked(url))
                    if isinstance(found, bytes):
                        return found
                    url = found
        except TimeoutError:
            raise ImageInputError("url_failed", f"The image did not come within {self.timeout:g} seconds") from None
        raise ImageInputError("url_failed", f"The image's URL is redirected more than {MOST_REDIRECTS} times")

    def close(self) -> None:
        """Let go of the threads; nothing is fetched afterwards."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _checked(self, text: str) -> httpx2.URL:
        """A URL of an allowed host. What is checked here is what is connected to: nothing reads the text again."""
        if not self.allowed:
            raise ImageInputError(
                "url_not_allowed", "Images by URL are turned off on this server: send the image itself, as base64"
            )
        try:
            url = httpx2.URL(text) if len(text) <= _LONGEST_URL else None
        except (httpx2.InvalidURL, ValueError):
            url = None
        if url is None or url.scheme not in _PORTS or url.userinfo or not _HOST.fullmatch(url.raw_host.decode()):
            raise ImageInputError(
                "url_not_allowed",
                f"{text[:100]!r} is no URL that is fetched: give one of https with a host's name, without a user",
            )
        host, port = url.raw_host.decode(), url.port or _PORTS[url.scheme]
        if not any(entry.allows(url.scheme, host, port) for entry in self.allowed):
            raise ImageInputError(
                "url_not_allowed", f"Images are not fetched from {url.scheme}://{host}:{port} by this server"
            )
        return url

    async def _get(self, url: httpx2.URL) -> bytes | str:
        """The content, or the URL that it is said to be at."""
        host, port = url.raw_host, url.port or _PORTS[url.scheme]
        origin = httpcore2.Origin(url.raw_scheme, host, port)
        target = httpcore2.URL(scheme=url.raw_scheme, host=host, port=port, target=url.raw_path)
        try:
            async with (
                # One connection for one request, and no proxy: nothing that was not checked is connected to.
                httpcore2.AsyncHTTPConnection(
                    origin, ssl_context=self._ssl, network_backend=self._network
                ) as connection,
                connection.stream("GET", target, headers=_HEADERS, extensions=self._waits) as response,
            ):
                headers = {name.lower(): value for name, value in response.headers}
                if response.status in _REDIRECTS and b"location" in headers:
                    return str(url.join(headers[b"location"].decode("latin-1")))
                if response.status != 200:
                    raise _failed(url, f"the host answers with status {response.status}")
                if headers.get(b"content-encoding", b"identity").lower() != b"identity":
                    raise _failed(url, "the host sends it compressed, which was not asked for")
                return await self._body(response, headers.get(b"content-length", b""), url)
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise _failed(url, str(error) or type(error).__name__) from None
        except httpx2.InvalidURL:
            raise _failed(url, "the host redirects to what is no URL") from None

    async def _body(self, response: httpcore2.Response, announced: bytes, url: httpx2.URL) -> bytes:
        most, body = self.limits.max_bytes, bytearray()
        if not (announced.isdigit() and int(announced) > most):
            async for part in response.aiter_stream():
                body += part
                if len(body) > most:
                    break
            else:
                if not body:
                    raise _failed(url, "the host sends nothing")
                return bytes(body)
        raise ImageInputError(
            "image_too_large", f"The image at {url.host} has more than the {most:,} bytes that are taken"
        )

    async def _resolve(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _failed(url: httpx2.URL, reason: str) -> ImageInputError:
    # The host alone: a path or a query may hold a secret, as signed URLs do.
    return ImageInputError("url_failed", f"The image could not be fetched from {url.host}: {reason}")


class _CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to the addresses that were checked, whatever the name means afterwards."""

    def __init__(self, resolve: Resolve, is_public: Callable[[str], bool]) -> None:
        self._resolve, self._is_public = resolve, is_public
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        if not all(self._is_public(address) for address in addresses):
            raise ImageInputError(
                "url_not_allowed", f"{host} is at an address that is not public: it is not fetched from"
            )
        failure: Exception = httpcore2.ConnectError("the name has no address")
        for address in addresses:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

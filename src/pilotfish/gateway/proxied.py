"""Calls to an endpoint that is reached through a proxy, carried by aiohttp."""

from __future__ import annotations

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from pilotfish.errors import UpstreamError, UpstreamTimeoutError
from pilotfish.gateway.wire import Headers, NeverSentError

__all__ = ["Proxied"]

READ_BUFFER_BYTES = 1 << 17
MAX_HEADER_BYTES = 1 << 16
_OWN_HEADERS = frozenset(["User-Agent", "Accept", "Accept-Encoding", "Content-Type"])


class Proxied:
    """Connections to one endpoint through the proxy that the environment names.

    Parameters
    ----------
    base_url : str
        The endpoint.
    connect_timeout, read_timeout, total_timeout : float
        Seconds to connect, of silence, and of a whole call.
    """

    def __init__(self, base_url: str, connect_timeout: float, read_timeout: float, total_timeout: float) -> None:
        self.name = base_url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(total=total_timeout, sock_connect=connect_timeout, sock_read=read_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_OWN_HEADERS,
            trust_env=True,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )

    async def send(self, method: str, target: bytes, headers: Headers, body: bytes) -> _Reply:
        """Send a call and wait for the head of its reply; raises as ``Wire.send`` does."""
        url = URL(self.name + target.decode("latin-1"), encoded=True)
        try:
            response = await self._session.request(
                method, url, headers=_decoded(headers), data=body or None, allow_redirects=False
            )
        except aiohttp.ConnectionTimeoutError as error:
            message = f"The upstream {self.name} did not accept a connection in time: check its address."
            raise NeverSentError(message, 504) from error
        except TimeoutError as error:
            message = f"The upstream {self.name} did not reply in time: try again, or raise its time-outs."
            raise UpstreamTimeoutError(message, 504) from error
        except (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError) as error:
            message = f"The upstream {self.name} cannot be reached ({type(error).__name__}): check it and the proxy."
            raise NeverSentError(message, 502) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            message = f"The upstream {self.name} broke off or sent no valid HTTP ({type(error).__name__}): try again."
            raise UpstreamError(message, 502) from error
        return _Reply(response, self.name)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


class _Reply:
    """An aiohttp response as the gateway reads it."""

    __slots__ = ("_response", "name", "raw_headers", "status")

    def __init__(self, response: aiohttp.ClientResponse, name: str) -> None:
        self._response = response
        self.status = response.status
        self.raw_headers = response.raw_headers
        self.name = name

    async def read_some(self) -> bytes:
        """What has arrived of the body, waiting for at least one byte; empty at its end."""
        try:
            return await self._response.content.readany()
        except TimeoutError as error:
            raise UpstreamTimeoutError(f"The upstream {self.name} fell silent: try again.", 504) from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError(f"The upstream {self.name} broke off: try again.", 502) from error

    def close(self) -> None:
        """Let go of the connection; at its end the body has given it back already."""
        self._response.close()


def _decoded(headers: Headers) -> CIMultiDict[str]:
    try:
        return CIMultiDict([(name.decode(), value.decode()) for name, value in headers])
    except UnicodeDecodeError:
        # aiohttp writes header text as UTF-8: what is no UTF-8 cannot be kept byte for byte.
        return CIMultiDict([(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers])

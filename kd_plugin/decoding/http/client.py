"""Requests to a server: repeated after a fault, with growing delays, and given up if repeating cannot help.

httpx sends them and tenacity repeats them; both come with the extra [http].
"""

import asyncio
import collections
import re
import time
from typing import Any, Counter, Dict, List, Optional

import httpx
import tenacity

from kd_plugin.decoding.http.answers import FAILED, REFUSED, REJECTED, TOO_LONG
from kd_plugin.decoding.http.options import HttpOptions
from kd_plugin.decoding.http.replies import (
    Malformed,
    Reply,
    error_code,
    read_reply,
    seconds_to_wait,
    server_words,
)
from kd_plugin.errors import KDPluginError, shown

KEPT = "answers so far are kept, and the same command continues"
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds; the upper limit of a random wait doubles after each fault
LONGEST_ASKED = 600.0  # seconds of a Retry-After; beyond it, it is better to run the command again later
CONNECT = 10.0  # seconds to wait for a connection
RETRIES_AT_FIRST = 3  # before the first answer, an address without a connection is probably not a server
LARGEST = 16 << 20  # bytes in a reply
_TOO_LONG = re.compile(
    r"context.{0,30}(?:length|size|window)|maximum.{0,20}(?:length|tokens)|too (?:long|many tokens)", re.I
)


class NoAnswer(Exception):
    """A sentence gets no answer, but others may. name: the name under which it is counted"""

    def __init__(self, name: str, why: str):
        super().__init__(why)
        self.name = name


class _Fault(Exception):
    """A fault that may be temporary. kind: one word; wait: seconds that the server asks to wait"""

    def __init__(self, kind: str, why: str, wait: Optional[float] = None):
        super().__init__(why)
        self.kind, self.wait = kind, wait


class Client:
    """A client of one server; an asynchronous context manager, used within one event loop.

    requests: number of requests sent; faults: number that failed and were repeated or given up, by kind
    """

    def __init__(self, options: HttpOptions):
        self._options, self._url, self._key = options, options.endpoint(), options.key()
        self.requests = 0
        self.faults: Counter[str] = collections.Counter()
        self._has_answered = False
        # httpx searches all its connections for each request: clients with one connection each avoid that
        self._idle: List[httpx.AsyncClient] = []
        try:
            self._tls = httpx.create_ssl_context()
            self._idle.append(self._connection())
            httpx.URL(self._url)
        except (ImportError, ValueError, TypeError, httpx.InvalidURL, OSError) as error:  # address, proxy, certificates
            raise KDPluginError(f"--url {options.url}: {error}. Remedy: correct the address or the proxy") from error

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *exception: Any) -> None:
        for connection in self._idle:
            await connection.aclose()

    def _connection(self) -> httpx.AsyncClient:
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        # the request as a whole has its own time limit, which a server cannot extend byte by byte
        timeout = httpx.Timeout(None, connect=min(CONNECT, self._options.timeout))
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        return httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout, verify=self._tls)

    async def ask(self, body: Dict[str, Any]) -> Reply:
        """The server's reply to a request, after as many faults as --retries allows.

        Raises:
            NoAnswer: this request gets no answer
            KDPluginError: no request can get an answer
        """
        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Fault), stop=self._stops, wait=_wait, reraise=True
        )
        try:
            reply: Reply = await attempts(self._send, body)
        except _Fault as fault:
            if fault.kind == "connection":
                raise KDPluginError(
                    f"--url {self._options.url}: {fault}. Remedy: start the server, or correct the address; {KEPT}"
                ) from fault
            raise NoAnswer(FAILED, str(fault)) from fault
        self._has_answered = True
        return reply

    def _stops(self, state: tenacity.RetryCallState) -> bool:
        fault: Any = state.outcome.exception() if state.outcome is not None else None
        retries = self._options.retries
        if fault.kind == "connection" and not self._has_answered:
            retries = min(retries, RETRIES_AT_FIRST)
        return state.attempt_number > retries

    async def _send(self, body: Dict[str, Any]) -> Reply:
        self.requests += 1
        limit = self._options.timeout
        try:
            response, content = await asyncio.wait_for(self._post(body), limit)
            if response.is_success:
                return read_reply(content)
            raise self._error(response, content)
        except _Fault as fault:
            self.faults[fault.kind] += 1
            raise
        except Malformed as error:
            raise self._fault("malformed", f"the server's reply is malformed: {error}") from error
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            why = str(error) or f"no connection within {min(CONNECT, limit):g} s"
            raise self._fault("connection", f"cannot be reached: {why}") from error
        except (asyncio.TimeoutError, httpx.TimeoutException) as error:
            raise self._fault("timeout", f"no answer within {limit:g} s (--timeout)") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise self._fault("broken", f"the connection broke: {str(error) or type(error).__name__}") from error

    def _fault(self, kind: str, why: str) -> _Fault:
        self.faults[kind] += 1
        return _Fault(kind, why)

    async def _post(self, body: Dict[str, Any]) -> Any:
        content = bytearray()
        connection = self._idle.pop() if self._idle else self._connection()
        try:
            async with connection.stream("POST", self._url, json=body) as response:
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > LARGEST:
                        raise Malformed(f"longer than {LARGEST:,} bytes")
        finally:
            self._idle.append(connection)
        return response, bytes(content)

    def _error(self, response: httpx.Response, content: bytes) -> Exception:
        """What a status other than 200 means: a fault, no answer to this sentence, or no answer to any."""
        status, code, words = response.status_code, error_code(content), server_words(content)
        if self._key is not None:
            words = words.replace(self._key, "…")  # some servers repeat an invalid key
        what = f"{status} {response.reason_phrase}{': ' + words if words else ''}"
        if status in (408, 409, 425, 429) or status >= 500:
            if code == "insufficient_quota":
                return KDPluginError(f"--url {self._options.url}: {what}. Remedy: increase the quota; {KEPT}")
            wait = seconds_to_wait(response.headers.get("retry-after"), time.time())
            if wait is not None and wait > LONGEST_ASKED:
                return KDPluginError(
                    f"--url {self._options.url}: {what}; it asks to wait {shown(round(wait))} s. Remedy: run the same "
                    f"command again after that; {KEPT}"
                )
            return _Fault(str(status), f"the server answers {what}", wait)
        if status in (400, 413, 422):
            if code == "content_filter" or "content_policy" in code:
                return NoAnswer(REFUSED, what)
            if status == 413 or code == "context_length_exceeded" or _TOO_LONG.search(words):
                return NoAnswer(TOO_LONG, what)
            return NoAnswer(REJECTED, what)
        remedy = {
            401: "use the right key in --api-key-env",
            403: "use the right key in --api-key-env",
            404: "correct --url, which usually ends in /v1, --model or --api",
        }.get(status, "use the address of an OpenAI-compatible API")
        return KDPluginError(f"--url {self._options.url}: the server answers {what}. Remedy: {remedy}; {KEPT}")


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds until the next attempt: a random time (exponential back-off), after what the server asks for.

    The random time keeps requests that were refused together from coming back together.
    """
    fault: Any = state.outcome.exception() if state.outcome is not None else None
    return (fault.wait or 0.0) + tenacity.wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)(state)

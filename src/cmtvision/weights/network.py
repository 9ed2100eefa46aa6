"""HTTP requests: through the proxies of the environment, redirects to HTTP only, failures reported in one line."""

import http.client
from http.client import HTTPMessage
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    getproxies,
    proxy_bypass,
)

TIMEOUT = 20.0
"""Seconds without a byte."""
BRIEFLY = 4.0
"""The same, for a question that need not be answered."""


def unreachable(url: str) -> str:
    """Why a server cannot be asked at all, '' if it responds at all. Tried once, with a short timeout."""
    try:
        opener().open(Request(url, method="HEAD", headers={"User-Agent": "cmtvision"}), timeout=TIMEOUT).close()
    except HTTPError as error:
        error.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        return innermost(error) + by_proxy(url)
    return ""


def missing(url: str, timeout: float) -> str:
    """Why a file cannot be had from its address, '' if its server would send it. Tried once, with a short timeout."""
    try:
        opener().open(Request(url, method="HEAD", headers={"User-Agent": "cmtvision"}), timeout=timeout).close()
    except HTTPError as error:
        error.close()
        return f"{urlsplit(url).hostname} answers {error.code} {error.reason}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{urlsplit(url).hostname}: {innermost(error)}{by_proxy(url)}"
    return ""


def opener() -> OpenerDirector:
    """An opener that uses the proxies of the environment; it supports neither file: nor ftp: nor data:."""
    asks = OpenerDirector()
    for handler in (ProxyHandler(), HTTPHandler(), HTTPSHandler(), _Redirects(), HTTPErrorProcessor()):
        asks.add_handler(handler)
    asks.add_handler(HTTPDefaultErrorHandler())
    return asks


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to http and https only, and never from https back to http."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """See urllib."""
        scheme = urlsplit(newurl).scheme
        if scheme != "https" and not (scheme == "http" and req.type == "http"):
            fp.close()
            raise URLError(f"it leads to {newurl[:100]}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def by_proxy(url: str) -> str:
    """A note naming the proxy used for an address, without its password; '' if there is none."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if not proxy or proxy_bypass(parts.hostname or ""):
        return ""
    return f", asked by the proxy {proxy.rpartition('@')[2].rpartition('//')[2].rstrip('/')}"


def innermost(error: BaseException) -> str:
    """Why the network failed: the first fault in a chain of errors, in a line."""
    inner = getattr(error, "reason", None)
    inner = inner if isinstance(inner, BaseException) else error.__cause__
    if inner is not None:
        return innermost(inner)
    if isinstance(error, TimeoutError) and not error.strerror:
        return "no answer in time"
    text = getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error) or type(error).__name__
    return (str(text).strip().splitlines() or [""])[0][:300]

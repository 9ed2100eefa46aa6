"""A file of weights from its address into the cache, whole or not at all.

The cache is torch's and timm's, ``$TORCH_HOME/hub/checkpoints`` (``~/.cache/torch/hub/checkpoints``), and is searched
first. A download is kept under a hidden name until it is complete, so that after an interruption the next try, in this
process or a later one, requests only the rest, provided that the file is still the same one. Before it
gets its name it is compared with the hash in that name (``resnet18-5c106cde.pth``) and opened by the safe reader.
Of several processes that want the same file one downloads and the others wait.
"""

import glob
import hashlib
import http.client
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request

from filelock import FileLock, Timeout
from huggingface_hub import constants as hub

from cmtvision.errors import CheckpointError, first_line
from cmtvision.weights import network
from cmtvision.weights.fetch_progress import shown_progress
from cmtvision.weights.files import read_state_dict
from cmtvision.weights.network import by_proxy, innermost

MAX_BYTES = 8_000_000_000
"""No file of weights is larger; a server that never ends is left here."""
TRIES = 5
"""In a row that brought nothing new."""
_CHUNK = 1 << 20
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_HASH = re.compile(r"-(?=\d*[a-f])([0-9a-f]{8,64})\.")  # digits alone are a date
_WEB_PAGE = "what came is a web page, not a file of weights; the login page of a network?"
_log = logging.getLogger(__name__)


class FetchError(CheckpointError):
    """Weights that could not be fetched.

    Args:
        fault: which weights, and why.
        remedy: where to put them by hand.
        option: the option that names a file instead.
    """

    def __init__(self, fault: str, remedy: str, option: str = "--weights FILE") -> None:
        super().__init__(fault, remedy, option)
        self.fault, self.remedy, self.option = fault, remedy, option

    def of_setting(self, key: str) -> "FetchError":
        """The same, for weights that another setting of the recipe names."""
        return FetchError(f"{key}: {self.fault}", self.remedy, f"{key}=FILE")

    def __str__(self) -> str:
        return f"{self.fault}; {self.remedy}, or name a file with {self.option}"


def cache_folder() -> Path:
    """The folder where downloaded weights are kept and searched first; it need not exist."""
    from torch.hub import get_dir

    return Path(get_dir()) / "checkpoints"


def fetch(
    url: str,
    folder: str | Path | None = None,
    name: str | None = None,
    check: Callable[[Path], object] | None = read_state_dict,
    pause: float = 1.0,
) -> Path:
    """The file of an address, from the cache or, where it is not there, from the network.

    Proxies are those of the environment (HTTPS_PROXY, NO_PROXY); with HF_HUB_OFFLINE set no download is tried.

    Args:
        url: http or https.
        folder: the cache; None for ``cache_folder()``.
        name: of the file in it; None takes the address's own.
        check: raises CheckpointError for a file that is not whole.
        pause: seconds until the second try; doubled after each try that brought nothing.

    Raises:
        FetchError: no network, no such file, a damaged one, or a cache that cannot be written.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise FetchError(f"{url}: no address ({error})", "correct it") from None
    name = name or Path(parts.path).name
    target = Path(cache_folder() if folder is None else folder) / name
    if target.is_file():
        return target
    job = _Job(url, target, pause)
    if parts.scheme not in ("http", "https") or not parts.hostname or name in ("", "..") or Path(name).name != name:
        raise job.failed("expected the address of a file, https://...")
    if hub.HF_HUB_OFFLINE:
        raise FetchError(f"{url}: not fetched, HF_HUB_OFFLINE is set", job.remedy)
    if target.parts[0] == "~":
        raise FetchError(f"{url}: no home folder to keep it in", "set TORCH_HOME to a folder to keep weights in")
    with _locked(job):
        if not target.is_file():  # another process may have been faster
            part = job.download()
            job.keep(part, check)
    return target


@contextmanager
def _locked(job: "_Job") -> Iterator[None]:
    """Hold the file's lock, waiting for another process that has it."""
    lock = FileLock(job.target.with_name(f".{job.target.name}.lock"))
    with job.writing():
        job.target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _log.info("waiting for another process that downloads %s", job.target.name)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _BrokenOffError(Exception):
    """The connection ended before the file did; another try may bring the rest."""


@dataclass(frozen=True)
class _Offer:
    """A server's file: its length, what distinguishes it from a later version, and the hidden file that receives it."""

    part: Path
    total: int | None
    validator: str

    @property
    def have(self) -> int:
        """Bytes downloaded so far."""
        return self.part.stat().st_size if self.part.is_file() else 0


@dataclass
class _Job:
    """One download."""

    url: str
    target: Path
    pause: float

    def __post_init__(self) -> None:
        self.opener = network.opener()

    @property
    def remedy(self) -> str:
        """What the user can do by hand."""
        return f"put the file at {self.target}, which is looked at first"

    def failed(self, reason: str) -> FetchError:
        """The error with a reason."""
        return FetchError(f"{self.url}: cannot be fetched ({reason})", self.remedy)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn a failed write into a one-line error."""
        try:
            yield
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise FetchError(
                f"{self.url}: cannot be kept in {self.target.parent} ({reason})",
                "set TORCH_HOME to a folder with room that you may write to",
            ) from error

    def download(self) -> Path:
        """Download the whole file into a hidden one next to the target.

        Raises:
            FetchError: it cannot be fetched.
        """
        offer: _Offer | None = None
        fruitless, most = 0, 0
        with shown_progress(self.url, self.target.name) as show:
            while True:
                try:
                    with self._ask(offer) as answer:
                        if answer.status != http.client.PARTIAL_CONTENT:
                            found = self._offer(answer)
                            if offer is None and found.have:  # what an earlier process left
                                offer = found
                                if offer.have == offer.total:
                                    return offer.part
                                continue
                            offer = found
                            offer.part.unlink(missing_ok=True)
                        assert offer is not None
                        self._receive(answer, offer, show)
                    return offer.part
                except _BrokenOffError as broken:
                    have = offer.have if offer else 0
                    fruitless, most = (0, have) if have > most else (fruitless + 1, most)
                    if fruitless >= TRIES:
                        here = f", {have:,} of {offer.total:,} bytes are downloaded" if offer and offer.total else ""
                        raise self.failed(f"{broken}{here}, {TRIES} tries brought nothing more") from None
                    seconds = self.pause * 2**fruitless
                    _log.info("%s: %s; trying again in %.0f s", self.target.name, broken, seconds)
                    time.sleep(seconds)

    def keep(self, part: Path, check: Callable[[Path], object] | None) -> None:
        """Give a complete file its final name; a wrong file is deleted.

        Raises:
            FetchError: its hash is not the one in its name, or the check fails.
        """
        try:
            expected = _HASH.search(self.target.name)
            if expected is not None:
                with self.writing(), part.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if not found.startswith(expected[1]):
                    raise self.failed(f"damaged: its SHA-256 begins with {found[:8]}, not {expected[1]}")
            if check is not None:
                check(part)
        except CheckpointError as error:
            with part.open("rb") as file:
                page = file.read(100).lstrip().startswith(b"<")
            part.unlink(missing_ok=True)
            if isinstance(error, FetchError):
                raise
            reason = str(error).removeprefix(f"{part}: ").partition(";")[0]
            raise self.failed(_WEB_PAGE if page else f"what came is damaged or no weights: {reason}") from None
        with self.writing():
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(self.target)
        _log.info("downloaded %s to %s", self.target.name, self.target.parent)

    def _ask(self, offer: _Offer | None) -> Any:
        """The server's response, with only the missing bytes if it can confirm that the file is the same."""
        have = offer.have if offer is not None and offer.validator else 0
        headers = {"User-Agent": "cmtvision", "Accept-Encoding": "identity"}
        if offer is not None and have:
            headers |= {"Range": f"bytes={have}-", "If-Range": offer.validator}
        try:
            answer = self.opener.open(Request(self.url, headers=headers), timeout=network.TIMEOUT)
        except HTTPError as error:
            error.close()
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and offer is not None:
                offer.part.unlink(missing_ok=True)
            elif error.code not in _AGAIN:
                raise self.failed(f"the server answers {error.code} {error.reason}{by_proxy(self.url)}") from None
            raise _BrokenOffError(f"the server answers {error.code} {error.reason}") from None
        except URLError as error:
            reason = innermost(error)
            if offer is None:  # no network, and waiting will not bring one
                raise self.failed(f"{reason}{by_proxy(self.url)}") from error
            raise _BrokenOffError(reason) from error
        except ValueError as error:
            raise self.failed(first_line(error)) from error
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenOffError(innermost(error)) from error
        if answer.status == http.client.PARTIAL_CONTENT:
            if offer is None:
                raise self.failed("the server sends a part of the file, and was asked for all of it")
            given = answer.headers.get("Content-Range", "")
            if not have or given != f"bytes {have}-{(offer.total or 0) - 1}/{offer.total}":
                answer.close()
                offer.part.unlink(missing_ok=True)
                raise _BrokenOffError(f"the server sends other bytes than were asked for ({given or 'unnamed'})")
        return answer

    def _offer(self, answer: Any) -> _Offer:
        """The offer of a response that begins at the first byte; a partial older file is deleted."""
        if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise self.failed(_WEB_PAGE)
        length = answer.headers.get("Content-Length", "")
        chunked = answer.headers.get("Transfer-Encoding", "").lower() == "chunked"
        total = int(length) if re.fullmatch(r"[0-9]{1,18}", length) and not chunked else None
        if total is not None and total > MAX_BYTES:
            raise self.failed(f"{total:,} bytes; no file of weights is larger than {MAX_BYTES:,}")
        etag = answer.headers.get("ETag", "")
        strong = etag if etag.startswith('"') else ""
        validator = strong or answer.headers.get("Last-Modified", "") if total is not None else ""
        name = self.target.name
        key = hashlib.sha256("\n".join([self.url, validator, length]).encode()).hexdigest()[:12]
        part = self.target.with_name(f".partial-{key}-{name}")  # its suffix tells the reader what it is
        with self.writing():
            for old in self.target.parent.glob(f".partial-*-{glob.escape(name)}"):
                if old != part or not validator or old.stat().st_size > (total or 0):
                    old.unlink(missing_ok=True)
        return _Offer(part, total, validator)

    def _receive(self, answer: Any, offer: _Offer, show: Callable[[int, int | None], None]) -> None:
        """Append the received bytes to the hidden file.

        Raises:
            _BrokenOffError: it ended too early. FetchError: it does not end, or the disk is full.
        """
        have = offer.have
        with self.writing():
            file = offer.part.open("ab")
        with file:
            while True:
                show(have, offer.total)
                try:
                    chunk = answer.read1(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise _BrokenOffError(innermost(error)) from error
                if not chunk:
                    break
                have += len(chunk)
                if have > MAX_BYTES:
                    offer.part.unlink(missing_ok=True)
                    raise self.failed(f"more than {MAX_BYTES:,} bytes came; no file of weights is larger")
                with self.writing():
                    file.write(chunk)
            with self.writing():
                file.flush()
        if offer.total is not None and have < offer.total:
            raise _BrokenOffError("the connection ended early")

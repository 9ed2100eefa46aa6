"""Weights from an address: a real server that breaks off, refuses, lies and serves other things, and a real proxy."""

import hashlib
import io
import logging
import os
import pickle
import socket
import subprocess
import sys

import pytest
import torch
from huggingface_hub import constants as hub

from cmtvision.errors import CheckpointError
from cmtvision.weights import fetch as module
from cmtvision.weights.fetch import FetchError, fetch
from cmtvision.weights.files import read_state_dict
from weight_server import served

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def checkpoint(size=20_000):
    buffer = io.BytesIO()
    torch.save({"model": {"weight": torch.arange(size, dtype=torch.float32)}}, buffer)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server():
    with served(checkpoint()) as serving:
        yield serving


def files(folder):
    """What is in the cache, the lock aside."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock")) if folder.exists() else []


def refused(server, cache, name="weights.pth", **kwargs):
    with pytest.raises(FetchError) as caught:
        fetch(server.url(name), cache, pause=0, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert server.url(name) in message
    assert "--weights FILE" in message
    return message


def test_a_file_is_fetched_once_and_found_without_a_network_after(server, tmp_path):
    path = fetch(server.url(), tmp_path / "cache")
    assert path == tmp_path / "cache" / "weights.pth"
    assert path.read_bytes() == server.content
    assert fetch(server.url(), tmp_path / "cache") == path
    assert len(server.asked) == 1
    assert files(tmp_path / "cache") == ["weights.pth"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_stands_in_the_cache_is_taken_without_asking(tmp_path):
    (tmp_path / "mine.pth").write_bytes(b"put here by hand")
    assert fetch("https://nobody.invalid/mine.pth", tmp_path).read_bytes() == b"put here by hand"


def test_the_cache_is_that_of_torch(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert fetch(server.url()) == tmp_path / "hub" / "checkpoints" / "weights.pth"


def test_a_break_costs_only_what_is_missing(server, tmp_path):
    server.breaks = [30_000, 20_000]
    assert fetch(server.url(), tmp_path, pause=0).read_bytes() == server.content
    assert server.parts == [None, "bytes=30000-", "bytes=50000-"]
    assert all(headers.get("If-Range") == '"1"' for _, headers in server.asked[1:])


def test_a_later_process_goes_on_where_an_earlier_one_ended(server, tmp_path):
    server.breaks = [30_000] + [0] * 20
    message = refused(server, tmp_path)
    assert f"30,000 of {len(server.content):,} bytes are downloaded" in message
    assert not (tmp_path / "weights.pth").exists()
    server.breaks, server.asked = [], []
    assert fetch(server.url(), tmp_path).read_bytes() == server.content
    assert server.parts == [None, "bytes=30000-"]
    assert files(tmp_path) == ["weights.pth"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path):
    server.breaks = [30_000] + [0] * 20
    refused(server, tmp_path)
    server.breaks, server.asked = [], []
    server.content, server.version = checkpoint(21_000), "2"
    assert fetch(server.url(), tmp_path).read_bytes() == server.content
    assert server.parts == [None]
    assert files(tmp_path) == ["weights.pth"]


def test_a_file_that_changes_between_break_and_rest_is_not_put_together(server, tmp_path, monkeypatch):
    new = checkpoint(21_000)
    real = module.time.sleep

    def sleep(seconds):
        server.content, server.version = new, "2"
        real(0)

    monkeypatch.setattr(module.time, "sleep", sleep)
    server.breaks = [30_000]
    assert fetch(server.url(), tmp_path).read_bytes() == new


@pytest.mark.parametrize("without", ["ranges", "validators"])
def test_a_server_that_cannot_serve_parts_is_asked_for_the_whole_again(server, tmp_path, without):
    setattr(server, without, False)
    server.breaks = [30_000, 40_000]
    assert fetch(server.url(), tmp_path, pause=0).read_bytes() == server.content


def test_a_busy_server_is_asked_again(server, tmp_path, caplog):
    server.statuses = [503, 429]
    with caplog.at_level(logging.INFO, "cmtvision"):
        assert fetch(server.url(), tmp_path, pause=0).read_bytes() == server.content
    assert "503 Service Unavailable; trying again" in caplog.text.replace("weights.pth: the server answers ", "")


@pytest.mark.parametrize(("status", "words"), [(403, "403 Forbidden"), (404, "404 Not Found")])
def test_a_refusal_is_one_line_at_once(server, tmp_path, status, words):
    server.statuses = [status]
    assert words in refused(server, tmp_path)
    assert len(server.asked) == 1
    assert files(tmp_path) == []


def test_nobody_answers(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(FetchError, match="Connection refused") as caught:
        fetch(f"http://127.0.0.1:{port}/weights.pth", tmp_path)
    assert f"put the file at {tmp_path / 'weights.pth'}, which is looked at first" in str(caught.value)


@pytest.mark.parametrize("size", [50_000, 81_000])
def test_a_torn_or_damaged_file_never_gets_its_name(server, tmp_path, size):
    server.content = server.content[:size] if size < len(server.content) else b"\x00" * size
    assert "damaged or no weights: not a whole checkpoint" in refused(server, tmp_path)
    assert files(tmp_path) == []


def test_a_pickle_that_would_run_something_is_deleted_unread(server, tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    server.content = pickle.dumps({"model": Runs()})
    assert "would run" in refused(server, tmp_path / "cache")
    assert not (tmp_path / "ran").exists()
    assert files(tmp_path / "cache") == []


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_called_so(server, tmp_path, content_type):
    server.content, server.content_type = b"\n<!DOCTYPE html><html>Log in to this network</html>", content_type
    assert "web page" in refused(server, tmp_path)
    assert files(tmp_path) == []


def test_the_hash_in_a_name_is_checked(server, tmp_path):
    digest = hashlib.sha256(server.content).hexdigest()
    assert fetch(server.url(f"good-{digest[:8]}.pth"), tmp_path).is_file()
    message = refused(server, tmp_path, "bad-0123abcd.pth")
    assert f"SHA-256 begins with {digest[:8]}, not 0123abcd" in message
    assert files(tmp_path) == [f"good-{digest[:8]}.pth"]


def test_a_length_that_is_too_long_ends(server, tmp_path):
    server.length = len(server.content) + 1000
    assert "tries brought nothing more" in refused(server, tmp_path)
    assert not (tmp_path / "weights.pth").exists()


def test_a_length_that_is_too_short_is_damage(server, tmp_path):
    server.length = len(server.content) - 1000
    assert "damaged" in refused(server, tmp_path)
    assert files(tmp_path) == []


def test_a_server_that_never_ends_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1_000_000)
    server.endless = True
    assert "more than 1,000,000 bytes" in refused(server, tmp_path)
    assert files(tmp_path) == []
    server.endless, server.length = False, 2_000_000
    assert "2,000,000 bytes" in refused(server, tmp_path)


def test_a_server_that_says_nothing_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module.network, "TIMEOUT", 0.1)
    monkeypatch.setattr(module, "TRIES", 2)
    server.silence = 1
    assert "no answer in time" in refused(server, tmp_path)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/weights.pth", "http:///weights.pth", "weights"])
def test_only_http_and_https(tmp_path, url):
    with pytest.raises(FetchError, match="expected the address of a file"):
        fetch(url, tmp_path)


@pytest.mark.parametrize("path", ["", "/", "/..", "/a/.."])
def test_an_address_without_a_file(server, tmp_path, path):
    with pytest.raises(FetchError, match="expected the address of a file"):
        fetch(f"http://127.0.0.1:{server.port}{path}", tmp_path / "cache")
    assert server.asked == []


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x"])
def test_no_way_from_http_to_a_file(server, tmp_path, location):
    server.location = location
    refused(server, tmp_path)
    assert files(tmp_path) == []


def test_a_redirect_is_followed_and_ranges_go_along(server, tmp_path):
    with served(server.content) as store:
        server.location = store.url("signed")
        store.breaks = [30_000]
        assert fetch(server.url(), tmp_path, pause=0).read_bytes() == server.content
        assert store.parts == [None, "bytes=30000-"]


def test_offline_means_no_attempt(server, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(server, tmp_path)
    assert server.asked == []


def test_a_proxy_is_asked(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{server.port}")
    path = fetch("http://weights.example/cmt.pth", tmp_path)
    assert path.read_bytes() == server.content
    assert [asked for asked, _ in server.asked] == ["http://weights.example/cmt.pth"]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch(server.url("near.pth"), tmp_path)
    assert server.asked[-1][0] == "/near.pth"  # not a full address: the server was asked, not the proxy


def test_a_proxy_that_refuses_is_named_without_its_password(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{server.port}")
    server.statuses = [407]
    with pytest.raises(FetchError, match=rf"407.*by the proxy 127\.0\.0\.1:{server.port}\)") as caught:
        fetch("http://weights.example/cmt.pth", tmp_path)
    assert "secret" not in str(caught.value)


FETCH = "import sys; from cmtvision.weights.fetch import fetch; print(fetch(*sys.argv[1:]))"


@pytest.mark.slow
def test_two_processes_at_once_get_one_whole_file(server, tmp_path):
    server.piece_pause = 0.02  # 80 pieces
    both = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", FETCH, server.url(), str(tmp_path)]) for _ in range(2)
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert (tmp_path / "weights.pth").read_bytes() == server.content
    assert len(server.asked) == 1
    assert files(tmp_path) == ["weights.pth"]


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = refused(server, tmp_path / "file" / "cache")
    assert "cannot be kept" in message
    assert "TORCH_HOME" in message


def test_no_home_makes_no_folder_called_tilde(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no home folder" in refused(server, "~/.cache/torch")
    assert files(tmp_path) == []


def test_a_log_says_how_far_it_is(server, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("cmtvision.weights.fetch_progress.SECONDS_BETWEEN_LINES", 0.0)
    server.piece_pause = 0.001
    with caplog.at_level(logging.INFO, "cmtvision"):
        fetch(server.url(), tmp_path)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == f"downloading {server.url()} (80.8 kB)" or lines[0].startswith(f"downloading {server.url()} (8")
    assert any(" of 8" in line and "/s, " in line and "s left" in line for line in lines[1:])
    assert lines[-1] == f"downloaded weights.pth to {tmp_path}"


def test_a_terminal_shows_a_bar(server, tmp_path, monkeypatch):
    controller, terminal = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    server.piece_pause = 0.005
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        fetch(server.url(), tmp_path)
        monkeypatch.undo()
        shown = os.read(controller, 100_000).decode()
    os.close(controller)
    assert "downloading weights.pth" in shown
    assert "kB" in shown
    assert "/s" in shown


def test_what_was_fetched_is_what_is_read(server, tmp_path):
    assert torch.equal(read_state_dict(fetch(server.url(), tmp_path))["weight"], torch.arange(20_000.0))


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(FetchError("x: cannot be fetched", "put it there").of_setting("distill.weights")))
    assert isinstance(error, CheckpointError)
    assert str(error) == "distill.weights: x: cannot be fetched; put it there, or name a file with distill.weights=FILE"

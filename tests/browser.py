"""The fixture ``open_page``: a page of ours in a real headless browser, and what is wrong with it there.

Debian's chromium, found on the path; without it, or without playwright, the test is skipped with that reason. A page is
a file and must stay one: the browser is offline, and every request other than for the page itself is a finding.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FAULTS = ("serious", "critical")  # of axe-core's four impacts
_LOADED = "[...document.images].map(i => [i.complete && i.naturalWidth > 0, i.alt || i.src.slice(0, 60)])"
_SCROLLS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@dataclass
class Findings:
    """What a browser says of a page, and the page itself to click in.

    Attributes:
        page: playwright's page, open until the test ends.
        errors: uncaught exceptions, errors and warnings of the console, up to when the page had loaded.
        requests: addresses that the page asked for besides its own file and data URIs.
        pictures: how many images it shows.
        broken: the alternative texts of those that did not load.
        overflow: pixels by which it is wider than the window.
        violations: axe-core's serious and critical findings, one line each.
    """

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    pictures: int = 0
    broken: list[str] = field(default_factory=list)
    overflow: int = 0
    violations: list[str] = field(default_factory=list)

    def assert_sound(self) -> None:
        """No error, no request, every picture there, nothing cut off at the side, nothing serious from axe-core."""
        assert self.errors == []
        assert self.requests == []
        assert self.broken == []
        assert self.overflow <= 0
        assert self.violations == []


@pytest.fixture
def open_page():
    """A function (path, width=1280, dark=False, scripts=True) -> Findings; all its pages share one browser."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield lambda path, width=1280, dark=False, scripts=True: _look(browser, Path(path), width, dark, scripts)
        browser.close()


def _look(browser: Any, path: Path, width: int, dark: bool, scripts: bool) -> Findings:
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",  # what is still moving would be judged at a random moment
        java_script_enabled=scripts,
        offline=True,
    )
    page = context.new_page()
    found = Findings(page)
    address = path.resolve().as_uri()
    page.on("pageerror", lambda error: found.errors.append(str(error)))
    page.on("console", lambda said: found.errors.append(said.text) if said.type in ("error", "warning") else None)
    page.on("request", lambda one: None if _is_own(one.url, address) else found.requests.append(one.url))
    page.goto(address, wait_until="load")
    states = page.evaluate(_LOADED)
    found.pictures = len(states)
    found.broken = [name for loaded, name in states if not loaded]
    found.overflow = page.evaluate(_SCROLLS)
    found.violations = _violations(page) if scripts else []
    return found


def _is_own(url: str, address: str) -> bool:
    return url.partition("#")[0] == address or url.startswith("data:")


def _violations(page: Any) -> list[str]:
    axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing")
    results = axe_api.Axe().run(page)
    return [
        f"{one['impact']}: {one['id']}, {one['help']}; first of {len(one['nodes'])}: {one['nodes'][0]['html'][:200]}"
        for one in results.response["violations"]
        if one["impact"] in FAULTS
    ]

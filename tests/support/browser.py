"""Pages in Chromium, by Playwright: what is wrong with one, and pictures of it.

`python tests/support/browser.py REPORT.html PICTURE.png` makes a picture of a report without its
tables, in columns.
"""

import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WIDTHS = (1280, 390)  # of a screen and a phone
NAMES = ("chromium", "chromium-browser", "google-chrome")  # where Playwright has none of its own
IN_COLUMNS = """
body { max-width: none; }
main { columns: 3; column-gap: 3rem; }
nav, .wide { display: none; }
p, img { break-inside: avoid; }
h2, p { break-after: avoid; }
section:last-child { display: none; }
"""


def missing() -> str | None:
    """Why there is no browser, or None."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "needs playwright"
    return None if any(map(shutil.which, NAMES)) else f"needs one of {', '.join(NAMES)}"


@contextmanager
def page(width: int) -> Iterator[Any]:
    """A page of this width in a browser of its own."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, NAMES)))
    with sync_playwright() as tool:
        # a container's root may not have the sandbox; the pages are our own
        browser = tool.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=0)
        try:
            shown = browser.new_page(viewport={"width": width, "height": 900})
            shown.set_default_timeout(0)  # a loaded machine is no fault of a page
            yield shown
        finally:
            browser.close()


def faults(path: Path, width: int) -> list[str]:
    """What a page does that it should not: errors, requests, broken pictures, a scroll bar."""
    found: list[str] = []
    with page(width) as shown:
        shown.on("console", lambda message: found.append(f"console: {message.text}"))
        shown.on("pageerror", lambda error: found.append(f"error: {error}"))
        shown.on("request", lambda request: found.append(f"request: {request.url[:200]}"))
        shown.goto(path.resolve().as_uri(), wait_until="load")
        found.remove(f"request: {path.resolve().as_uri()}")
        widths = shown.evaluate("[...document.images].map(each => each.naturalWidth)")
        found += [f"picture {i} does not show" for i, pixels in enumerate(widths) if not pixels]
        if not widths:
            found.append("no picture")
        needed = shown.evaluate("document.documentElement.scrollWidth")
        if needed > width:
            found.append(f"{needed} pixels wide")
    return found


def photograph(path: Path, out: Path) -> None:
    """A report's pictures in columns, as a PNG of 256 colours."""
    from PIL import Image

    with page(1900) as shown:
        shown.goto(path.resolve().as_uri(), wait_until="load")
        shown.add_style_tag(content=IN_COLUMNS)
        pixels = shown.screenshot(full_page=True)
    image = Image.open(io.BytesIO(pixels)).convert("RGB")
    # which keeps the colours of thin lines
    few = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=5, dither=Image.Dither.NONE)
    few.save(out, optimize=True)


if __name__ == "__main__":
    photograph(Path(sys.argv[1]), Path(sys.argv[2]))

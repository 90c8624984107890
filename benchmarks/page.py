"""The page of a 128-token text beside BertViz: bytes of the file, and seconds until it can be used, from disk, in Chromium.

    python benchmarks/page.py [--peer DIR] [--scripts DIR] [--repeat 5]

Same model, same text, same browser, same measure: seconds from the start of the navigation to the first frame after what a
person uses is there (the median of the repetitions). BertViz comes from its package, found where Python looks or in --peer:

    pip install --target DIR bertviz ipython --no-deps      (and what these two miss here)

Its file loads require.js, d3 and jQuery from cdnjs.cloudflare.com, so from disk without a network it shows nothing. With
--scripts (a node_modules with requirejs@2.3.6, d3@5.7.0 and jquery@2) the three are served from there, in no time.
Needs Chromium and playwright. Measured on 2 cores: about a minute.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Route, TimeoutError, sync_playwright

from regard.pretrained import Pretrained, Tokens, attentions, load, tokenize
from regard.record import record
from regard.testing.browser import CHROMIUM, FLAGS
from regard.view.page import render
from results import append

SENTENCES = (
    "The animal didn't cross the street because it was too tired.",
    "The animal didn't cross the street because it was too wide.",
)
LONG = """The river had been high since the thaw, and the ferryman, who had crossed it every morning for thirty years, told the
    doctor that he would not take her over before it fell. She answered that the child could not wait, that she had seen him
    take a cart of timber across in worse, and that she would row herself if he lent her the boat. He looked at the water, then
    at her bag, then at the sky, and said that the boat was old and that he was older, but that it was his and that he would
    not have it sunk by somebody who had learned to row on a lake. So they went together, and neither of them spoke until the
    bow touched the other side."""
TOKENS = 128
CDN = {"require.js": "requirejs/require.js", "d3": "d3/dist/d3.min.js", "jquery": "jquery/dist/jquery.min.js"}


def exactly(pretrained: Pretrained, text: str, tokens: int) -> str:
    """The beginning of a text that has so many tokens."""
    words = text.split()
    for count in range(len(words), 0, -1):
        start = " ".join(words[:count])
        if len(tokenize(pretrained, start).ids) == tokens:
            return start
    raise ValueError(f"no beginning of the text has {tokens} tokens")


def peers(pretrained: Pretrained, tokens: Tokens) -> dict[str, str]:
    """The pages that BertViz makes of the same weights, by name."""
    try:
        import bertviz
    except ImportError as error:
        print(f"without BertViz: {error}")
        return {}
    dense = [layer.to_dense() for layer in attentions(pretrained, tokens)]
    views: Sequence[Callable[..., Any]] = (bertviz.head_view, bertviz.model_view)
    version = importlib.metadata.version("bertviz")
    return {f"bertviz {version} {view.__name__}": view(dense, list(tokens.pieces), html_action="return").data for view in views}


def seconds(browser: Browser, page: Path, ready: str, scripts: Path | None, repeat: int) -> float | None:
    """How long until something that matches is there; None if it never is. Without scripts the network is off."""
    times = []
    for _ in range(repeat):
        context = browser.new_context(viewport={"width": 1280, "height": 800}, offline=scripts is None)
        if scripts is not None:
            context.route(re.compile("^https?:"), lambda route: _from_disk(route, scripts))
        tab = context.new_page()
        tab.goto(page.as_uri(), wait_until="commit")
        there = f"document.querySelector('{ready}') && performance.now()"
        try:
            times.append(float(tab.wait_for_function(there, polling="raf", timeout=20_000).json_value()) / 1000)
        except TimeoutError:
            return None
        finally:
            context.close()
    return statistics.median(times)


def _from_disk(route: Route, scripts: Path) -> None:
    name = next((file for part, file in CDN.items() if f"/{part}/" in route.request.url), None)
    if name is None:
        route.abort()
    else:
        route.fulfill(path=scripts / name, content_type="text/javascript")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", type=Path, help="a directory with bertviz and IPython")
    parser.add_argument("--scripts", type=Path, help="a node_modules with requirejs, d3 and jquery")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    if options.peer is not None:
        sys.path.append(str(options.peer))  # last, so that it brings no other version of what is here
    if CHROMIUM is None:
        print("no Chromium found")
        return 1
    pretrained = load()
    text = exactly(pretrained, LONG, TOKENS)
    tokens = tokenize(pretrained, text)
    shape = "6 layers × 12 heads"
    cases = {f"two sentences of 16 tokens, {shape}": SENTENCES, f"{TOKENS} tokens, {shape}": (text,)}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        place = Path(folder) / "page.html"
        own: dict[str, tuple[float, float]] = {}
        for case, texts in cases.items():
            place.write_bytes(render(record(pretrained, texts)))
            needed = seconds(browser, place, "[data-ready]", None, options.repeat)
            if needed is None:
                print(f"{case}: the page never became ready")
                return 1
            own[case] = place.stat().st_size / 1000, needed
        first, last = own
        append("page", first, "kB of the file", own[first][0])
        append("page", first, "seconds to interactive, offline", own[first][1])
        for name, page in (peers(pretrained, tokens) or {"bertviz, not installed": ""}).items():
            place.write_text(page)
            append("page", last, "kB of the file", own[last][0], name, place.stat().st_size / 1000 if page else "")
            offline = seconds(browser, place, "[id^=bertviz] svg", None, 1) if page else None
            never = "never: its scripts are on cdnjs.cloudflare.com" if page else ""
            append("page", last, "seconds to interactive, offline", own[last][1], name, never if offline is None else offline)
            if page and options.scripts is not None:
                served = seconds(browser, place, "[id^=bertviz] svg", options.scripts, options.repeat)
                measure = "seconds to interactive, the peer's scripts served from disk"
                append("page", last, measure, own[last][1], name, "never" if served is None else served)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

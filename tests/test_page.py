"""The page: its bytes, and what a real browser makes of it, opened from disk with the network off."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("transformers")

import regard
from regard import pretrained
from regard.cli import main
from regard.pretrained import Pretrained, Refused, load
from regard.record import READOUTS, Layer, NotWritten, Record, Text, record
from regard.record.shapes import HEAD_TABLE
from regard.testing.browser import CHROMIUM, FLAGS
from regard.view import page as made
from regard.view.page import modules, render, write

ROOT = Path(__file__).parents[1]
PLAYWRIGHT = importlib.util.find_spec("playwright") is not None
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"

in_browser = pytest.mark.skipif(
    not (CHROMIUM and PLAYWRIGHT), reason="no Chromium found" if PLAYWRIGHT else "playwright is not installed"
)
demo = pytest.mark.skipif(importlib.util.find_spec(pretrained.PACKAGE) is None, reason="the demo extra is not installed")

TIRED = "The animal didn't cross the street because it was too tired."
WIDE = "The animal didn't cross the street because it was too wide."
HOSTILE = (
    "<img src=x onerror=alert(1)>", "</script>", "<!--", "<script>alert(2)</script>", "\u202eabc", "\u2066x\u2069", "\u200b",
    "👩\u200d👩\u200d👧", "e\u0301", "Z\u0338\u0321\u031bal\u0337go", "مرحبا", "שלום", "x" * 10_240, "a\tb\n", "\u2028",
    "\ud800", "&amp;", "{data}", "-->", " ", "__proto__", "';alert(3)//",
)  # fmt: skip


# -- records ----------------------------------------------------------------------------------------------------------


def drawn(
    *texts: tuple[str, ...], layers: int = 2, heads: int = 3, special: tuple[int, ...] = (0,), causal: bool = False
) -> Record:
    """A record of random weights, as regard.record makes it."""
    kinds = tuple(Layer("self", heads, heads, 0.125, "causal" if causal else "full", 0) for _ in range(layers))
    read = tuple(_text(pieces, layers, heads, special, causal) for pieces in texts)
    return Record("a drawn <b>model</b>", None, read, kinds, READOUTS, {"regard": regard.__version__})


def _text(pieces: tuple[str, ...], layers: int, heads: int, special: tuple[int, ...], causal: bool) -> Text:
    n = len(pieces)
    scores = np.random.default_rng(n).normal(size=(layers, heads, n, n)) * 2
    if causal:
        scores = np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    k = n if n <= 64 else 8
    order = np.argsort(-weights, -1, kind="stable")[..., :k]
    values = np.take_along_axis(weights, order, -1)
    marks = tuple(i in special for i in range(n))
    bins = min(n, 32)
    edges = [a * n // bins for a in range(bins)]
    sums = np.add.reduceat(np.add.reduceat(weights, edges, -1), edges, -2)
    sizes = np.diff([*edges, n])
    distance = np.abs(np.arange(n)[:, None] - np.arange(n))

    def near(offset: int) -> np.ndarray:
        moved = np.zeros((layers, heads, n), np.float32)
        rows = np.arange(max(0, -offset), min(n, n - offset))
        moved[..., rows] = weights[..., rows, rows + offset]
        return moved

    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(weights > 0, weights * np.log(weights), 0).sum(-1)
    arrays = {
        "topk.values": values, "topk.indices": np.where(values > 0, order, -1), "entropy": entropy,
        "logsumexp": np.zeros_like(entropy), "distance": (weights * distance).sum(-1), "maximum": weights.max(-1),
        "self": near(0), "previous": near(-1), "next": near(1), "first": weights[..., 0],
        "special": weights[..., marks].sum(-1), "received": weights.sum(-2), "pool": sums / np.outer(sizes, sizes),
    }  # fmt: skip
    arrays = {name: array.astype("<i4" if name == "topk.indices" else "<f4") for name, array in arrays.items()}
    starts = np.cumsum([0, *(len(piece) + 1 for piece in pieces)]).tolist()
    spans = tuple((a, a + len(piece)) for a, piece in zip(starts, pieces, strict=False))
    return Text(" ".join(pieces), tuple(range(n)), pieces, spans, marks, arrays)


@pytest.fixture(scope="module")
def minilm() -> Pretrained:
    return load()


@pytest.fixture(scope="module")
def animals(minilm: Pretrained) -> Record:
    return record(minilm, [TIRED, WIDE])


def data_of(page: bytes) -> dict[str, Any]:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.decode(), re.DOTALL)
    assert text
    return json.loads(text[1])


def numbers(encoded: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(encoded), kind)


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_the_same_record_gives_the_same_page(tmp_path: Path) -> None:
    read = drawn(("[CLS]", "a", "dog"), ("[CLS]", "a", "cat"))
    read.save(tmp_path / "a.safetensors")
    write(regard.load(tmp_path / "a.safetensors"), tmp_path / "a.html", "a")
    assert (tmp_path / "a.html").read_bytes() == render(read, "a") == render(read, "a")
    assert render(read, "a") != render(read)


def test_every_weight_can_be_read_back() -> None:
    read = drawn(("[CLS]", "a", "dog", "ran"), causal=True)
    (text,) = data_of(render(read))["texts"]
    values, indices = read.texts[0].arrays["topk.values"], read.texts[0].arrays["topk.indices"]
    dense = numbers(text["weights"], "<u2").reshape(2, 3, 4, 4) / 65535
    assert text["indices"] is None
    for place in np.ndindex(values.shape):
        if indices[place] >= 0:
            assert dense[(*place[:3], indices[place])] == pytest.approx(values[place], abs=1e-5)
    assert dense.sum() == pytest.approx(values.sum(), abs=1e-3)
    means = numbers(text["means"]["entropy"], "<f4").reshape(2, 3)
    np.testing.assert_allclose(means, read.texts[0].arrays["entropy"].mean(-1), rtol=1e-6)


@pytest.mark.parametrize(("count", "kind"), [(65, "u1"), (255, "u1"), (256, "<u2"), (300, "<u2")])
def test_a_long_text_keeps_its_strongest_keys(count: int, kind: str) -> None:
    read = drawn(tuple(f"w{i}" for i in range(count)), causal=True)
    (text,) = data_of(render(read))["texts"]
    expected = read.texts[0].arrays["topk.indices"]
    found = numbers(text["indices"], kind).reshape(expected.shape).astype(int)
    none = np.iinfo(kind).max
    assert (np.where(found == none, -1, found) == expected).all()  # the last token's own index is not taken for none
    assert (text["kept"], text["bins"]) == (8, [32, 32])


def test_many_heads_keep_the_strongest_keys_of_a_short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    read = drawn(tuple(f"w{i}" for i in range(20)))
    assert data_of(render(read))["texts"][0]["kept"] == 20
    monkeypatch.setattr(made, "LARGEST", 1000)
    assert data_of(render(read))["texts"][0]["kept"] == 8


def test_pictures_are_as_dark_as_the_largest_weight_beyond_what_is_set_aside() -> None:
    read = drawn(("[CLS]", "a", "dog", "ran"))
    (text,) = data_of(render(read))["texts"]
    pool = read.texts[0].arrays["pool"]
    picture = numbers(text["pictures"], "u1").reshape(pool.shape)
    assert (picture[..., 1:].max((-1, -2)) == 255).all()
    share = pool / pool[..., 1:].max((-1, -2), keepdims=True)
    np.testing.assert_allclose(picture / 255, np.sqrt(np.minimum(share, 1)), atol=0.003)


def test_the_policy_allows_what_is_in_the_page_and_nothing_else() -> None:
    page = render(drawn(HOSTILE)).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag, directive in (("style", "style-src"), ('script type="module"', "script-src")):
        (block,) = re.findall(rf"<{tag}>(.*?)</{tag.split()[0]}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert "style=" not in page


def test_text_cannot_leave_the_data() -> None:
    page = render(drawn(HOSTILE), "<!--").decode()
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert page.count("<!--") == 0
    assert "\u2028" not in page
    assert "\u202e" not in page
    assert data_of(page.encode())["texts"][0]["pieces"] == list(HOSTILE)


def test_modules_are_inlined_once_after_what_they_need() -> None:
    script = modules("app.js")
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
    places = [script.index(f"function {name}(") for name in ("visible", "decode", "makePanel", "step", "onHead")]
    assert places == sorted(places)
    assert script.count("function decode(") == 1
    static = ROOT / "src/regard/view/static"
    for path in static.glob("*.js"):
        source = path.read_text()
        assert len(source.splitlines()) < 300
        for line in re.findall(r"^export .*", source, re.MULTILINE):
            name = re.match(r"export (?:const|function) (\w+)", line)
            assert name, line
            assert re.search(rf"(?:const|function) {name[1]}\b", script), f"{path.name}: {name[1]} is not in the page"


def test_a_record_without_what_the_page_needs(tmp_path: Path) -> None:
    read = drawn(("[CLS]", "a"))
    poor = Record(read.model, None, read.texts, read.layers, HEAD_TABLE, {})
    with pytest.raises(regard.Unsupported, match=r"page: the record lacks topk, pool; read them with regard\.record\.record"):
        write(poor, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    read = drawn(("[CLS]", "a"))
    with pytest.raises(NotWritten, match="there is no directory"):
        write(read, tmp_path / "absent" / "page.html")
    with pytest.raises(NotWritten, match="it is a directory"):
        write(read, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_token_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="'dog' is not in the text"):
        write(drawn(("[CLS]", "a")), tmp_path / "page.html", "dog")
    assert not list(tmp_path.iterdir())


@demo
def test_a_sentence_takes_at_most_300_kb(animals: Record) -> None:
    assert len(render(animals, "it")) <= 300_000


@demo
def test_the_command_writes_the_page(minilm: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "load", lambda name: minilm)
    monkeypatch.chdir(tmp_path)
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: shown.append(url) or True)

    def run(*options: str) -> Any:
        return CliRunner().invoke(main, ["view", TIRED, WIDE, "--token", "it", *options], env={"COLUMNS": "100"})

    done = run()
    assert done.exit_code == 0
    assert done.stdout.endswith("The page: regard.html\n")
    assert (tmp_path / "regard.html").read_bytes() == render(record(minilm, [TIRED, WIDE]), "it")
    assert not shown
    done = run("--out", "other.html", "--open")
    assert shown == [(tmp_path / "other.html").as_uri()]
    done = run("--out", "absent/page.html")
    assert done.exit_code == 2
    assert done.stderr.startswith("regard: ")
    assert "there is no directory" in done.stderr
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    assert "no browser could be opened" in run("--open").stderr


# -- a browser --------------------------------------------------------------------------------------------------------

Opener = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Opener]:
    """Opens the page of a record; at the end nothing was asked of the network, nothing complained, nothing popped up."""
    with _watched(browser, tmp_path) as open_page:
        yield open_page


@contextmanager
def _watched(browser: Any, folder: Path) -> Iterator[Opener]:
    asked: list[str] = []
    said: list[str] = []
    contexts = []

    def open_page(read: Record, token: str | None = None, width: int = 1280, height: int = 800, **settings: Any) -> Any:
        path = folder / "page.html"
        write(read, path, token)
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(path.as_uri())
        page.wait_for_selector("[data-ready]", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not said
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]


def claims(page: Any) -> list[str]:
    return [re.sub(r"\s+", " ", claim).strip() for claim in page.locator(".claim").all_inner_texts()]


def focused(page: Any, attribute: str) -> str | None:
    return page.evaluate(f"document.activeElement.getAttribute('{attribute}')")


def tab_to(page: Any, role: str, turns: int = 12) -> None:
    for _ in range(turns):
        page.keyboard.press("Tab")
        if focused(page, "role") == role:
            return
    raise AssertionError(f"Tab does not reach a {role}")


@demo
@in_browser
def test_it_is_the_animal_when_it_is_tired(opened: Opener, animals: Record) -> None:
    page = opened(animals, "it")
    assert claims(page) == ["it → animal 0.68", "it → animal 0.28"]
    assert page.locator(".masses").all_inner_texts() == [
        "layer 3 head 1 · separators 0.11 · itself 0.06",
        "layer 3 head 1 · separators 0.34 · itself 0.03",
    ]
    assert "all-MiniLM-L6-v2" in page.locator("h1").inner_text()
    about = page.locator("#about").inner_text()
    assert "6 layers × 12 heads, counted from 0 · 16 and 16 tokens · revision sha256:" in about
    assert "The page opened at layer 3 head 1: of all heads" in page.locator("#why").inner_text()
    assert page.locator(".keys .strongest .value").all_inner_texts() == ["0.68", "0.28"]
    widths = [float(w) for w in page.locator("path.strongest").evaluate_all("x => x.map(p => p.getAttribute('stroke-width'))")]
    assert widths[0] > 2 * widths[1] / 1.5 > widths[1]
    assert page.locator("path.aside").count() == 4  # [CLS] and [SEP] in both texts


@in_browser
def test_hostile_texts_are_text(opened: Opener) -> None:
    page = opened(drawn(HOSTILE, HOSTILE[:5]), width=390, height=844)
    shown = page.locator(".panel").first.locator(".keys .token").all_text_contents()
    assert shown[:7] == [*HOSTILE[:4], "⟨U+202E⟩abc", "⟨U+2066⟩x⟨U+2069⟩", "U+200B"]
    assert shown[7:12] == list(HOSTILE[7:12])
    assert shown[12] == "x" * 80 + "…"
    assert page.locator(".keys .token").nth(12).get_attribute("title").endswith("… (10240 characters)")
    assert shown[13:] == ["a⟨U+0009⟩b⟨U+000A⟩", "U+2028", "U+D800", *HOSTILE[16:19], "U+0020", *HOSTILE[20:]]
    assert page.locator("img").count() == 0
    assert page.locator("h1").inner_text() == "Where a drawn <b>model</b> looks"
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    long = page.locator(".keys li").nth(12).bounding_box()
    assert long["height"] == 26


@in_browser
def test_a_right_to_left_token_runs_its_own_way(opened: Opener) -> None:
    page = opened(drawn(("[CLS]", "שלום", "dog")))
    directions = page.locator(".keys .token").evaluate_all("x => x.map(t => t.matches(':dir(rtl)'))")
    assert directions == [False, True, False]


@in_browser
def test_one_token(opened: Opener) -> None:
    page = opened(drawn(("one",), special=()))
    assert claims(page) == ["one → nothing else in sight"]
    assert "· 1 token" in page.locator("#about").inner_text()
    page.get_by_role("switch").click()
    assert page.locator(".keys .value").all_inner_texts() == ["1.00"]


@demo
@in_browser
def test_the_keyboard_reaches_every_token_and_every_head(opened: Opener, animals: Record) -> None:
    page = opened(animals, "it")
    tab_to(page, "option")
    assert focused(page, "aria-label") == "it"
    for text in (0, 1):
        page.keyboard.press("Home")
        seen = [focused(page, "aria-label")]
        for _ in range(15):
            page.keyboard.press("ArrowDown")
            seen.append(focused(page, "aria-label"))
        assert [name.split(" #")[0] for name in seen] == list(animals.texts[text].pieces)
        page.keyboard.press("ArrowDown")
        assert focused(page, "aria-label") == "[SEP]"
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowRight")
    tab_to(page, "gridcell")
    page.keyboard.press("Control+Home")
    heads = set()
    for layer in range(6):
        for _ in range(12):
            heads.add(focused(page, "aria-label").split(":")[0])
            page.keyboard.press("ArrowRight")
        assert page.locator("[role=row]").get_attribute("aria-rowindex") == str(layer + 1)
        page.keyboard.press("Home")
        page.keyboard.press("ArrowDown")
    assert heads == {f"Layer {layer} head {head}" for layer in range(6) for head in range(12)}
    page.keyboard.press("Control+End")
    assert focused(page, "aria-label").startswith("Layer 5 head 11: text 1, ")
    assert focused(page, "aria-colindex") == "12"
    page.keyboard.press("PageUp")
    assert focused(page, "aria-label").startswith("Layer 0 head 11: ")
    page.keyboard.press("m")
    first = focused(page, "aria-label")
    page.keyboard.press("m")
    assert focused(page, "aria-label") != first
    page.keyboard.press("Shift+M")
    assert focused(page, "aria-label") == first
    marked = {first}
    for _ in range(8):
        page.keyboard.press("m")
        marked.add(focused(page, "aria-label"))
    assert len(marked) == 8


@in_browser
def test_what_has_the_focus_can_be_seen(opened: Opener) -> None:
    page = opened(drawn(("[CLS]", "a", "dog")))
    style = "(({outlineStyle, outlineWidth, boxShadow}) => outlineStyle != 'none' ? parseFloat(outlineWidth) : boxShadow)"
    roles = []
    for _ in range(5):
        page.keyboard.press("Tab")
        roles.append(focused(page, "role"))
        assert page.evaluate(f"{style}(getComputedStyle(document.activeElement))") not in (0, "none")
    assert roles == ["switch", None, None, "option", "gridcell"]


@in_browser
def test_keys_are_explained_and_escape_closes(opened: Opener) -> None:
    page = opened(drawn(("[CLS]", "a", "dog")))
    dialog = page.get_by_role("dialog", name="Keys")
    page.keyboard.press("?")
    assert dialog.is_visible()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    page.get_by_role("button", name="Keys").click()
    assert dialog.is_visible()
    page.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()


@in_browser
def test_what_is_chosen_is_said(opened: Opener) -> None:
    page = opened(drawn(("[CLS]", "a", "dog", "ran"), ("[CLS]", "a", "cat", "ran")))
    tab_to(page, "option")
    page.keyboard.press("End")
    live = page.locator("#live")
    live.filter(has_text="text 1, ran looks at").wait_for(state="attached")
    first, second = claims(page)
    assert first.removeprefix("ran → ") in live.text_content()
    assert f"text 2, ran looks at {second.removeprefix('ran → ')}" in live.text_content()
    page.keyboard.press("s")
    live.filter(has_text="count like all others").wait_for(state="attached")
    assert not page.get_by_role("switch").is_checked()
    assert page.locator("path.aside").count() == 0


@in_browser
def test_tables_say_the_same(opened: Opener) -> None:
    page = opened(drawn(("[CLS]", "a", "dog", "ran")), "ran")
    tables = page.get_by_role("region", name="Tables")
    assert not tables.is_visible()
    page.get_by_role("button", name="Tables").click()
    captions = tables.locator("caption").all_inner_texts()
    assert captions[0].startswith("Where ran looks in layer ")
    rows = tables.locator("table").first.locator("tbody tr").all_inner_texts()
    assert len(rows) == 4
    assert sum(float(row.split("\t")[2]) for row in rows) == pytest.approx(1, abs=0.003)
    assert any(row.endswith("separator, first token") for row in rows)
    assert any(row.endswith("itself") for row in rows)
    page.locator(".queries li").nth(1).click()
    assert tables.locator("caption").first.inner_text().startswith("Where a looks in layer ")
    page.keyboard.press("t")
    assert not tables.is_visible()


@in_browser
def test_hovering_answers_and_leaving_takes_it_back(opened: Opener) -> None:
    page = opened(drawn(("[CLS]", "a", "dog", "ran"), ("[CLS]", "a", "cat", "ran")), "a")
    before = claims(page)
    page.locator(".queries li").nth(3).hover()
    assert [claim.split(" →")[0] for claim in claims(page)] == ["ran", "ran"]
    assert page.locator('.queries li[aria-selected="true"]').all_inner_texts() == ["a", "a"]
    page.locator(".keys li").nth(0).hover()
    assert [claim.split(" ")[2] for claim in claims(page)] == ["[CLS]", "[CLS]"]
    box = page.locator("#map canvas").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 10, box["y"] + box["height"] - 10)
    assert page.locator(".masses").first.inner_text().startswith("layer 1 head 2 ")
    page.mouse.move(5, 5)
    assert claims(page) == before
    page.mouse.click(box["x"] + box["width"] - 10, box["y"] + box["height"] - 10)
    page.mouse.move(5, 5)
    assert page.locator(".masses").first.inner_text().startswith("layer 1 head 2 ")
    assert focused(page, "role") == "gridcell"


@in_browser
def test_every_occurrence_can_be_told_apart(opened: Opener) -> None:
    page = opened(drawn(("[CLS]", "the", "dog", "the"), special=(0,)), "THE")
    labels = page.locator(".queries li").evaluate_all("x => x.map(o => o.getAttribute('aria-label'))")
    assert labels == ["[CLS]", "the #1", "dog", "the #3"]


@in_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_3072_heads_can_be_met(opened: Opener, width: int) -> None:
    page = opened(drawn(("[CLS]", "a", "dog", "ran"), layers=48, heads=64), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("*").count() < 400
    page.locator("[role=gridcell]").focus()
    page.keyboard.press("Control+End")
    assert focused(page, "aria-label").startswith("Layer 47 head 63: ")
    cell, room = page.locator("[role=gridcell]").bounding_box(), page.locator("#map").bounding_box()
    assert room["x"] <= cell["x"]
    assert cell["x"] + cell["width"] <= room["x"] + room["width"]
    assert cell["width"] >= 12


@in_browser
def test_a_long_text_scrolls_to_what_is_chosen(opened: Opener) -> None:
    words = tuple(f"w{i}" for i in range(300))
    page = opened(drawn(words, words[:200], causal=True, special=()), "w190")
    assert page.get_by_text("keeps the 8 strongest keys").count() == 2
    for panel in page.locator(".scroll").all():
        row, room = panel.locator(".queries li").nth(190).bounding_box(), panel.bounding_box()
        assert room["y"] <= row["y"] < room["y"] + room["height"]
    tab_to(page, "option")
    page.keyboard.press("Home")
    assert page.locator(".scroll").first.evaluate("x => x.scrollTop") == 0


@in_browser
def test_pictures_are_sharp_and_follow_the_colours(opened: Opener) -> None:
    page = opened(drawn(("[CLS]", "a", "dog")), device_scale_factor=2, color_scheme="light", reduced_motion="reduce")
    sizes = page.locator("#map canvas").evaluate_all("x => x.map(c => c.width / c.getBoundingClientRect().width)")
    assert sizes == [2, 2]
    assert page.locator(".bar").first.evaluate("x => getComputedStyle(x).transitionDuration") == "0s"
    drawing = "document.querySelector('#map canvas').toDataURL()"
    light = page.evaluate(drawing)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"before => {drawing} !== before", arg=light)


@in_browser
@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed: npm ci")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened: Opener, scheme: str, width: int) -> None:
    words = tuple(f"w{i}" for i in range(70))
    page = opened(drawn(("[CLS]", "a", "dog", "\u200b"), words), color_scheme=scheme, width=width)
    page.evaluate(AXE.read_text())

    def serious() -> list[str]:
        found = page.evaluate("axe.run()")["violations"]
        return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]

    assert not serious()
    page.get_by_role("switch").click()
    page.get_by_role("button", name="Tables").click()
    assert not serious()
    page.keyboard.press("?")
    assert not serious()

"""The page as a file, and in a browser: headless Chromium, driven by Selenium; slow, and skipped where either is
missing."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from instructgpt.config import ModelConfig
from instructgpt.html import read_page
from instructgpt.inside.page import _TEMPLATE, page, page_data
from instructgpt.inside.survey import Survey, survey
from instructgpt.text.tokenizer import Tokenizer
from tests.random_models import talkative

HOSTILE = "the cat</script><script>window.ran=1</script><img src=x onerror='window.ran=1'> & \u2028 {{7*7}} <!--data-->"


@pytest.fixture(scope="module")
def found(tokenizer: Tokenizer) -> Survey:
    shape = ModelConfig(tokenizer.vocab_size, context=192, layers=2, width=32, heads=3, head_dim=8, qk_norm=True)
    model = talkative(shape, dtype=torch.float32)
    return survey(model, tokenizer, "the cat number 3 saw birds", "the cat number 7 saw birds", answer_tokens=5)


@pytest.fixture(scope="module")
def hostile(tokenizer: Tokenizer) -> str:
    shape = ModelConfig(tokenizer.vocab_size, context=256, layers=2, width=32, heads=3, head_dim=8)
    return page(
        survey(talkative(shape, dtype=torch.float32), tokenizer, HOSTILE, answer_tokens=3), "<b>run</b>", HOSTILE
    )


def data_of(html: str) -> dict[str, Any]:
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(block)


def test_what_the_page_holds_is_what_was_found(found: Survey):
    data = data_of(page(found, "run", "the prompt"))
    assert data == page_data(found, "run", "the prompt")
    assert "".join(token["text"] for token in data["tokens"][data["first"] :]).strip() == found.answer.strip()
    assert len(data["head"]) == 6 and len(data["mlp"]) == len(data["attention"]) == 2
    assert data["gradient"][0][1] == float(f"{found.by_gradient[0, 1]:.4g}")
    T = len(data["tokens"])
    attention = base64.b64decode(data["head"][4]["map"])
    assert len(attention) == T * (T + 1) // 2
    row = attention[10 * 11 // 2 : 11 * 12 // 2]
    torch.testing.assert_close(
        torch.tensor(list(row)) / 255, found.trace.attention[1][1, 10, :11].float(), atol=1 / 500, rtol=0
    )


def test_the_same_is_found_again(found: Survey, tokenizer: Tokenizer):
    prompts = ("the cat number 3 saw birds", "the cat number 7 saw birds")
    again = survey(found.model, tokenizer, *prompts, answer_tokens=5)
    assert page(again, "run", *prompts) == page(found, "run", *prompts)


def test_the_page_loads_nothing_and_makes_no_markup_of_text():
    html = read_page(_TEMPLATE)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|fetch\(", html
    )
    assert not re.search(r"\son\w+=|<(?:iframe|object|embed|img|link rel=.stylesheet)|@import", html)
    assert set(re.findall(r"https?://[^\s'\"]+", html)) == {"http://www.w3.org/2000/svg"}  # a name: nobody fetches it


def test_text_cannot_end_what_it_stands_in(hostile: str):
    assert hostile.count("<script") == hostile.count("</script>") == _TEMPLATE.read_text("utf-8").count("</script>")
    assert "<img" not in hostile and "<b>run" not in hostile and "\u2028" not in hostile
    data = data_of(hostile)
    assert data["prompt"] == HOSTILE and data["name"] == "<b>run</b>"
    assert "script-src 'sha256-" in hostile and "default-src 'none'" in hostile


def test_a_large_model_leaves_maps_out_and_says_so(found: Survey, monkeypatch: pytest.MonkeyPatch):
    T = len(found.trace.ids)
    monkeypatch.setattr("instructgpt.inside.page.MOST_MAP_BYTES", 3 * T * (T + 1) // 2)
    data = page_data(found, "run", "prompt")
    assert sum(each["map"] is not None for each in data["head"]) == 3
    assert data["leftOut"][0].startswith("Attention maps of 3 of 6 heads")
    effects = [max(map(abs, each["effect"])) for each in data["head"]]
    assert data["head"][effects.index(max(effects))]["map"]


def test_answers_that_were_not_generated_are_told(found: Survey):
    few = replace(found, heads=[replace(each, answer=None) for each in found.heads])
    data = page_data(few, "run", "prompt")
    assert any(sentence.startswith("The answers without 6 of the parts") for sentence in data["leftOut"])


# ---- in a browser


def opened(chromium: Callable[..., Any], html: str, folder: Path, width: int = 1100, scheme: str = "light") -> Any:
    """The page from a file, in a browser that notes what it asks for."""
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    browser = chromium()
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get_log("browser")
    browser.get(file.as_uri())
    return browser


def is_clean(browser: Any) -> bool:
    """Nothing was complained of, and nothing asked for."""
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
    return not browser.get_log("browser") and not asked


PIXELS = "const c = document.getElementById('map'); return c.toDataURL()"


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (390, "dark")])
def test_a_click_on_a_head_shows_its_map(chromium, found: Survey, tmp_path: Path, width: int, scheme: str):
    browser = opened(chromium, page(found, "run", "prompt", "pair"), tmp_path, width, scheme)
    heads = browser.find_elements("css selector", "#parts tbody button")
    assert len(heads) == 2 * (3 + 2)
    heads[0].click()
    before, card = browser.execute_script(PIXELS), browser.find_element("id", "part").text
    browser.find_elements("css selector", "#parts tbody button")[1].click()
    assert browser.execute_script(PIXELS) != before and browser.find_element("id", "part").text != card
    assert "layer 0, head 1" in browser.find_element("id", "part").text
    browser.find_elements("css selector", "#parts tbody button")[4].click()  # an MLP has no map
    assert not browser.find_element("id", "map").is_displayed() and browser.find_element("id", "no-map").is_displayed()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert is_clean(browser)


@pytest.mark.slow
def test_everything_is_about_the_chosen_token(chromium, found: Survey, tmp_path: Path):
    browser = opened(chromium, page(found, "run", "prompt", "pair"), tmp_path)
    shown = lambda: [browser.find_element("id", name).text for name in ("rests", "part", "looks", "guesses")]  # noqa: E731
    tokens = browser.find_elements("css selector", "#tokens button")
    assert len(tokens) == 5
    tokens[0].click()
    first = shown()
    browser.find_elements("css selector", "#tokens button")[3].click()
    assert all(one != other for one, other in zip(first, shown()))
    for value in ("gradient", "attention"):
        before = browser.find_element("id", "rests").text
        browser.find_element("css selector", f"#tint [data-value={value}]").click()
        assert browser.find_element("id", "rests").text != before
    for value in ("induction", "copying", "patched"):
        before = browser.find_element("id", "parts").text
        browser.find_element("css selector", f"#measure [data-value={value}]").click()
        assert browser.find_element("id", "parts").text != before
    assert is_clean(browser)


@pytest.mark.slow
def test_it_can_be_used_with_the_keyboard(chromium, found: Survey, tmp_path: Path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser = opened(chromium, page(found, "run", "prompt", "pair"), tmp_path)
    press = lambda *keys: ActionChains(browser).send_keys(*keys).perform()  # noqa: E731
    chosen = lambda: browser.find_element("id", "part").text.splitlines()[0]  # noqa: E731
    browser.find_elements("css selector", "#parts tbody button")[0].click()
    press(Keys.ARROW_RIGHT)
    assert chosen() == "layer 0, head 1"
    press(Keys.ARROW_DOWN)
    assert chosen() == "layer 1, head 1"  # the focus has moved along
    canvas = browser.find_element("id", "map")
    browser.execute_script("arguments[0].focus()", canvas)
    label = canvas.get_attribute("aria-label")
    press(Keys.ARROW_UP)
    assert canvas.get_attribute("aria-label") != label
    browser.find_elements("css selector", "#stream tbody button")[0].click()
    before = browser.find_element("id", "patched").text
    press(Keys.ARROW_DOWN)
    assert browser.find_element("id", "patched").text != before
    assert is_clean(browser)


@pytest.mark.slow
def test_numbers_and_text_are_shown_as_people_write_them(chromium, hostile: str, tmp_path: Path):
    browser = opened(chromium, hostile, tmp_path)
    shown = browser.execute_script("return [0.04, -0.04, -0.06, 12.3, -0.5].map(each => fixed(each, 1))")
    assert shown == ["0.0", "0.0", "−0.1", "12.3", "−0.5"]
    assert browser.execute_script("return [-0.004, 0.004, -1.5, 2].map(signed)") == ["0.00", "0.00", "−1.50", "+2.00"]
    # Text that turns its direction turns nothing behind it.
    kinds = browser.execute_script(
        "return [...document.querySelectorAll('.t, .said')].map(e => getComputedStyle(e).unicodeBidi)"
    )
    assert set(kinds) == {"isolate"}


@pytest.mark.slow
def test_hostile_text_is_shown_and_not_run(chromium, hostile: str, tmp_path: Path):
    browser = opened(chromium, hostile, tmp_path)
    assert browser.execute_script("return window.ran") is None
    assert "<b>run</b>" in browser.find_element("id", "name").text
    text = browser.find_element("id", "tokens").text.replace("\u200b", "").replace(" ", "")
    assert "</script><script>window.ran=1</script>" in text
    assert is_clean(browser)

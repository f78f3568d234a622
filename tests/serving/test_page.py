"""The page in a browser: headless Chromium, driven by Selenium; slow, and skipped where either is missing.

Answers come from `scripted.py`, which says what it is told to; the last test talks with the real service.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is missing")
from instructgpt.html import read_page
from instructgpt.serving.app import _PAGE, page_policy
from tests.serving.scripted import Scripted

HTML = read_page(_PAGE)
ANSWER = "The **sea** is deep.\n\n1. Salt\n2. Water\n\n```\nx < 1\n```\n\nIt is 深い, naïve."


def test_the_page_loads_nothing_and_makes_no_markup_of_text():
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc", HTML)
    assert not re.search(r"\son\w+=|<(?:iframe|object|embed|script\s|link rel=.stylesheet)", HTML)
    addresses = set(re.findall(r"https?://[^\s'\"]+", HTML))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, which nobody fetches
    assert "'sha256-" in page_policy(HTML) and "default-src 'none'" in page_policy(HTML)


def test_both_languages_have_every_word():
    english, chinese = re.findall(r"^  (?:en|zh): \{(.*?)^  \},", HTML, re.DOTALL | re.MULTILINE)
    names = [
        set(re.findall(r"(?:^|[,{])\s*(\w+):", re.sub(r'"[^"]*"|`[^`]*`', '""', part))) for part in (english, chinese)
    ]
    assert names[0] == names[1] and len(names[0]) > 50
    used = set(re.findall(r'say\("(\w+)"\)|data-(?:say|label|place)="(\w+)"', HTML))
    assert {first or second for first, second in used} <= names[0]


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with Scripted() as running:
        running.answers["sea"] = ANSWER
        yield running


class Page:
    """What somebody does who uses the page."""

    def __init__(self, browser: Any, url: str, width: int = 1100, height: int = 800, scheme: str = "light"):
        self.browser = browser
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get_log("browser")
        browser.get(url)
        self.wait(lambda: self.script("return models.length") > 0 or self.shown("#key"))

    def script(self, code: str, *values: Any) -> Any:
        return self.browser.execute_script(code, *values)

    def wait(self, is_so: Callable[[], Any], seconds: float = 15) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, seconds, 0.02).until(lambda _: is_so())

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.all(selector)[0]

    def shown(self, selector: str) -> bool:
        return any(element.is_displayed() for element in self.all(selector))

    def keys(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def ask(self, text: str, wait: bool = True) -> None:
        from selenium.webdriver.common.keys import Keys

        self.one("#input").send_keys(text, Keys.ENTER)
        if wait:
            self.done()

    def done(self) -> None:
        self.wait(lambda: self.script("return !running"))

    @property
    def answers(self) -> list[str]:
        return [element.get_property("textContent") for element in self.all(".answer .body")]

    @property
    def focused(self) -> Any:
        return self.browser.switch_to.active_element

    @property
    def complaints(self) -> list[str]:
        """What the browser's console says, refusals of the policy among it."""
        return [entry["message"] for entry in self.browser.get_log("browser") if "favicon" not in entry["message"]]


@pytest.fixture
def page(chromium: Callable[..., Any], scripted: Scripted) -> Page:
    page = Page(chromium(), scripted.url)
    page.script("localStorage.clear(); sessionStorage.clear()")
    return Page(chromium(), scripted.url)


slow = pytest.mark.slow


@slow
def test_an_answer_becomes_paragraphs_lists_and_code(page: Page):
    page.ask("sea")
    assert page.one(".answer strong").text == "sea"
    assert [item.text for item in page.all(".answer ol li")] == ["Salt", "Water"]
    assert page.one(".answer pre").text == "x < 1"
    assert page.all(".answer p")[1].text == "It is 深い, naïve."
    assert (
        "tokens/s" in page.one("#foot").text and "tiny" in page.one("#foot").text and "of 512" in page.one("#foot").text
    )
    assert page.complaints == []


@slow
def test_it_streams_and_stops(page: Page, scripted: Scripted):
    scripted.pause = 0.03
    page.ask("word " * 200, wait=False)
    first = page.wait(lambda: len(page.answers[0]) > 6 and len(page.answers[0]))
    page.wait(lambda: len(page.answers[0]) > first)
    assert page.one(".answer").get_attribute("aria-busy") == "true"
    assert page.focused.get_attribute("id") == "input"
    page.one("#stop").click()
    page.done()
    sent = scripted.sent
    assert sent < 150 and page.one(".answer .note").text == "Stopped." and page.answers[0]
    assert page.shown("#send") and not page.shown("#stop")
    page.ask("go on")
    assert page.answers[1] == "go on" and scripted.asked[-1]["messages"][1]["content"].startswith("word word")


@slow
def test_retries_are_kept_beside_each_other(page: Page, scripted: Scripted):
    page.ask("one")
    page.ask("two")
    scripted.answers["two"] = "another"
    page.all("[data-tool=retry]")[1].click()
    page.done()
    assert page.answers == ["one", "another"]
    assert [message["content"] for message in scripted.asked[-1]["messages"]] == ["one", "one", "two"]
    page.one("[data-tool=before]").click()
    assert page.answers == ["one", "two"] and "1/2" in page.all(".answer .tools")[1].text


@slow
def test_a_message_is_edited_and_what_followed_is_dropped(page: Page, scripted: Scripted):
    from selenium.webdriver.common.keys import Keys

    page.ask("one")
    page.ask("two")
    page.all("[data-tool=edit]")[0].click()
    page.keys(Keys.ESCAPE)
    assert page.answers == ["one", "two"]
    page.all("[data-tool=edit]")[0].click()
    page.keys(" more", Keys.ENTER)
    page.done()
    assert page.answers == ["one more"] and len(page.all(".user")) == 1
    assert [message["content"] for message in scripted.asked[-1]["messages"]] == ["one more"]


@slow
def test_settings_reach_the_service_and_are_remembered(page: Page, scripted: Scripted, chromium: Callable[..., Any]):
    from selenium.webdriver.common.keys import Keys

    page.one("#open-settings").click()
    page.one("#system").send_keys("Be brief.")
    for name, value in (("top_k", "5"), ("max_tokens", "9999"), ("seed", "7"), ("stops", "END")):
        page.one(f"#{name}").send_keys(value)
    page.one("#temperature").send_keys(Keys.HOME)
    page.keys(Keys.ESCAPE)
    assert not page.shown("#settings")
    for _ in range(2):
        page = Page(chromium(), scripted.url)
        page.ask("hello")
        asked = scripted.asked[-1]
        assert asked["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
        assert (asked["temperature"], asked["top_k"], asked["max_tokens"], asked["seed"]) == (0, 5, 512, 7)
        assert (
            asked["stop"] == ["END"] and asked["logprobs"] and asked["top_logprobs"] == 5 and asked["model"] == "tiny"
        )


@slow
def test_another_model_can_be_chosen(page: Page, scripted: Scripted):
    page.one("#model").send_keys("tiny:pirate")
    page.ask("ahoy")
    assert scripted.asked[-1]["model"] == "tiny:pirate" and "tiny:pirate" in page.one("#foot").text


@slow
def test_the_language_is_the_browsers_and_can_be_switched(page: Page, chromium: Callable[..., Any], scripted: Scripted):
    assert (
        page.one("html").get_attribute("lang") == "en" and page.one("#input").get_attribute("placeholder") == "Message"
    )
    page.ask("hello")
    page.one("#language").click()
    assert page.one("html").get_attribute("lang") == "zh-CN" and page.one("#send").get_attribute("aria-label") == "发送"
    assert "词元/秒" in page.one(".answer .stats").text and page.answers == ["hello"]
    page.one("#language").click()
    assert page.one("#send").get_attribute("aria-label") == "Send"
    chinese = Page(chromium("zh-CN"), scripted.url)
    assert chinese.one("h2").text == "想问点什么？" and chinese.complaints == []


@slow
def test_a_token_is_pointed_at_or_walked_to(page: Page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.ask("sea")
    token = next(each for each in page.all(".t") if "dee" in each.text)
    ActionChains(page.browser).move_to_element(token).perform()
    page.wait(lambda: page.shown("#card"))
    card = page.one("#card").text
    assert re.search(r"\d+\.\d+ %", card) and "<b>no</b>" in card and "5.00 %" in card and not page.all("#card b b")
    first, second = page.all(".t")[:2]
    page.script("arguments[0].focus()", first)
    page.keys(Keys.ARROW_RIGHT)
    assert page.focused == second and second.get_attribute("aria-describedby") == "card" and page.shown("#card")
    page.keys(Keys.END)
    assert page.focused == page.all(".t")[-1]
    assert len(page.all('.body .t[tabindex="0"]')) == 1  # the whole answer is one stop of the tabulator
    page.keys(Keys.ESCAPE)
    assert not page.shown("#card")
    page.one("#tint").click()
    assert page.script("return getComputedStyle(document.querySelector('.t')).backgroundColor") not in (
        "",
        "rgba(0, 0, 0, 0)",
    )


@slow
def test_what_is_drawn_is_what_was_said_token_by_token(page: Page, scripted: Scripted):
    scripted.answers["wide"] = "é深い😀 and **bo\nld** `co`de"
    page.ask("wide")
    assert "".join(each.get_property("textContent") for each in page.all(".answer .t")) == "é深い😀 and bo\nld code"


@slow
def test_the_prompts_tokens_are_shown_with_control_tokens_marked(page: Page):
    page.ask("two words")
    page.one("[data-tool=tokens]").click()
    page.wait(lambda: page.all(".chips li"))
    assert [(chip.text, chip.get_attribute("class")) for chip in page.all(".chips li")] == [
        ("<user>", "control"), ("two␣", ""), ("words␣", ""),
    ]  # fmt: skip


@slow
def test_everything_is_reached_by_keyboard_alone(page: Page):
    from selenium.webdriver.common.keys import Keys

    assert page.focused.get_attribute("id") == "input"
    page.keys("sea", Keys.ENTER)
    page.done()
    reached, unmarked = [], []
    for _ in range(40):
        page.keys(Keys.TAB)
        element = page.focused
        if element.tag_name in ("body", "html"):  # past the last comes the first
            continue
        name = page.script("return arguments[0].id || arguments[0].dataset.tool || arguments[0].classList[0]", element)
        if name in reached:
            break
        reached.append(name)
        style = page.script("const s = getComputedStyle(arguments[0]); return s.outlineStyle + s.outlineWidth", element)
        box = page.script("return getComputedStyle(arguments[0].parentElement).boxShadow", element)
        if "none" in style and box == "none":
            unmarked.append(name)
        label = element.accessible_name
        assert label or name == "t" or element.tag_name == "pre", name
    first = reached.index("skip")
    wanted = "skip model new tint theme language open-settings edit t copy retry tokens input send".split()
    assert [name for name in reached[first:] + reached[:first] if name in wanted] == wanted
    assert unmarked == []


@slow
def test_half_a_chinese_word_is_not_sent(page: Page, scripted: Scripted):
    page.one("#input").send_keys("ni")
    page.script(
        "document.getElementById('input').dispatchEvent(new KeyboardEvent('keydown', "
        "{key: 'Enter', bubbles: true, cancelable: true, isComposing: true}))"
    )
    assert scripted.asked == [] and page.one("#input").get_property("value") == "ni"


@slow
@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_nothing_is_cut_off_on_a_telephone(chromium: Callable[..., Any], scripted: Scripted, language: str):
    page = Page(chromium(language), scripted.url, width=360, height=640)
    page.ask("sea")
    page.ask("averyveryverylongwordthatdoesnotend" * 8)
    page.script("document.querySelector('.t').focus()")
    beyond = page.script(
        "return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility())"
        ".filter(e => !e.closest('pre, .unseen, h1, option'))"
        ".map(e => [e.getBoundingClientRect(), e.outerHTML.slice(0, 99)])"
        ".filter(([box]) => box.width && (box.right > innerWidth + 1 || box.left < -1))"
    )
    assert beyond == [] and page.script("return innerWidth") == 360
    assert page.script("return document.documentElement.scrollWidth") <= 360
    small = [
        e.get_attribute("id") for e in page.all("header button, .round") if e.is_displayed() and e.size["height"] < 40
    ]
    assert small == []
    page.one("#open-settings").click()
    assert page.one("#settings").size["width"] == 360


@slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_stand_out_from_their_ground(chromium: Callable[..., Any], scripted: Scripted, scheme: str):
    """WCAG's contrast: 4.5 for what is read, in both schemes; and the switch overrides the system's."""
    page = Page(chromium(), scripted.url, scheme=scheme)
    page.script("theme = ''; showTheme()")
    page.ask("sea")
    contrast = """
        const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
        const rgb = colour => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
        const light = c => { const [r, g, b] = rgb(c).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c; } return "white"; };
        return arguments[0].map(s => { const e = document.querySelector(s), a = light(getComputedStyle(e).color), b = light(ground(e)); return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); });
    """  # noqa: E501
    read = [
        "h1",
        ".user .body",
        ".answer p",
        ".answer pre code",
        ".answer .stats",
        "#foot",
        "#send",
        "#language",
        "#input",
    ]
    ratios = dict(zip(read, page.script(contrast, read), strict=True))
    assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}
    ground = "return getComputedStyle(document.body).backgroundColor"
    before, seen = page.script(ground), set()
    for _ in range(3):
        page.one("#theme").click()
        seen.add(page.script(ground))
    assert len(seen) == 2 and page.script(ground) == before


HOSTILE = (
    "<script>window.hacked = 1; fetch('/stolen')</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg onload=window.hacked=1><a href='javascript:window.hacked=1'>x</a></svg>",
    "[click](javascript:window.hacked=1) ![i](/stolen) <javascript:window.hacked=1>",
    "```html\n</code></pre><script>window.hacked=1</script>\n```",
    "# <iframe src='javascript:parent.hacked=1'>\n\n> <style>body{display:none}</style>\n\n- **<b onclick=hacked=1>**",
    "**<img src=/stolen>** `<img src=/stolen>` *</p><meta http-equiv=refresh content='0;url=/stolen'>*",
    "${window.hacked=1} {{constructor.constructor('hacked=1')()}} &lt;script&gt;hacked=1&lt;/script&gt;",
    "![x](\"onerror=\"window.hacked=1) [a]: javascript:hacked=1 'onmouseover=hacked=1'",
    "\u202e<script>\u2028window.hacked=1\u2029</script>\u0000<!-- --!> <![CDATA[ ]]>",
    "__proto__ constructor toString " + "`" * 50 + "*" * 200 + "_" * 50,
)


@slow
def test_hostile_answers_are_text(page: Page, scripted: Scripted):
    from selenium.webdriver.common.action_chains import ActionChains

    elements = "return [...new Set([...document.querySelectorAll('.answer *')].map(e => e.tagName.toLowerCase()))]"
    for i, text in enumerate(HOSTILE):
        scripted.answers[f"hostile {i}"] = text
        page.ask(f"hostile {i}")
        ActionChains(page.browser).move_to_element(page.all(".answer .t")[-1]).click().perform()
    allowed = {
        "div",
        "p",
        "span",
        "strong",
        "em",
        "code",
        "pre",
        "blockquote",
        "ul",
        "li",
        "h3",
        "button",
        "svg",
        "path",
    }
    assert set(page.script(elements)) <= allowed
    assert page.script("return window.hacked === undefined && !document.querySelector('.answer [href], .answer [src]')")
    assert [asked for asked in scripted.asked if "path" in asked and "stolen" in asked["path"]] == []
    assert "<script>window.hacked = 1; fetch('/stolen')</script>" in page.answers[0]
    assert page.complaints == []


@slow
@pytest.mark.parametrize("mark", ["*", "**a ", "`", "> ", "- ", "#", "\n", "*a", "**", "``` "])
def test_long_hostile_markdown_is_drawn_in_time(page: Page, mark: str):
    text = mark * (60_000 // len(mark))
    seconds = page.script(
        "const v = new Version(); v.add(arguments[0], null); const b = new Body(v), t = performance.now(); b.update(); "
        "return (performance.now() - t) / 1000",
        text,
    )
    assert seconds < 2


@slow
def test_refusals_are_told_in_a_sentence(page: Page, scripted: Scripted):
    scripted.problem = (429, "Rate limit reached.")
    page.ask("a")
    assert page.one(".note.alarm").text == "The service is busy; try again in 7 seconds."
    scripted.problem = (400, "This model reads at most 512 tokens, and <b>yours</b> are more.")
    page.ask("b")
    assert page.all(".note.alarm")[-1].text == scripted.problem[1]
    scripted.problem, scripted.cut_after = None, 2
    page.ask("a longer one")
    assert page.all(".note.alarm")[-1].text == "The answer broke off." and page.answers[-1] == "a long"
    scripted.cut_after = 10**9
    page.all("[data-tool=retry]")[-1].click()
    page.done()
    assert page.answers[-1] == "a longer one"


@slow
def test_a_key_is_asked_for(chromium: Callable[..., Any], scripted: Scripted):
    scripted.key = "open sesame"
    page = Page(chromium(), scripted.url)
    assert page.shown("#key-form") and page.one("#key").get_attribute("type") == "password"
    page.one("#key").send_keys("wrong\n")
    page.one("#key").clear()
    page.one("#key").send_keys("open sesame\n")
    page.wait(lambda: not page.shown("#key-form"))
    page.ask("hello")
    assert page.answers == ["hello"] and "sesame" not in page.browser.current_url
    page.script("sessionStorage.clear()")


@slow
def test_the_real_service_answers_the_page(chromium: Callable[..., Any], start: Callable[..., Any]):
    with start() as live:
        page = Page(chromium(), live.url + "/")
        page.ask("the cat")
        assert page.answers[0] or page.one(".answer .note").text
        page.one("[data-tool=tokens]").click()
        page.wait(lambda: page.all(".chips li.control"))
        if page.all(".t"):
            page.script("document.querySelector('.t').focus()")
            assert len(page.all("#card .bar")) >= 5
        assert page.complaints == []

"""The page in a real browser: what a user does with mouse and keyboard, against ``jakiro serve``.

    make test-page

Needs Chromium (Debian: ``apt-get install chromium``; elsewhere name it by ``CHROMIUM``) and the
``playwright`` package. The server wants a key and takes one answer at a time, so that its refusals
are met, too. Pictures of the page go to ``build/page``.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from scripts.server import Server

KEY = "a-key-of-tests"
HEADERS = {"Authorization": f"Bearer {KEY}"}
PICTURES = Path("build/page")
QUESTION = "Tell me about the history of the sea."
SAMPLED = {"temperature": 0.8, "top-p": 0.9, "seed": 5, "max-tokens": 80}
SLOW_MS = 60_000
LAY = """async () => {
  const { Answer } = await import("/page/answer.js");
  const place = document.createElement("p");
  const own = new Answer(place);
  const drafted = (text, origin) => ({ text, how: "drafted", depth: 1, origin });
  const bonus = (text) => ({ text, how: "bonus" });
  const add = (text, tokens, path) => own.add({ text, tokens, cycles: path ? [{ path }] : [] });
  add("x", [{ text: "x", how: "first" }]);
  add("", [drafted("\ufffd", "expert 1"), bonus("")], [0, 1]);
  add("é", [drafted("!", "some_drafter"), bonus("<end>")], [0, 1]);
  add("!", []);
  own.finish();
  return [...place.children].map((span) => [span.textContent, span.className, span.title]);
}"""
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


def main() -> None:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
    if chromium is None:
        raise SystemExit("this needs Chromium: apt-get install chromium, or name it by CHROMIUM")
    expect.set_options(timeout=SLOW_MS)
    PICTURES.mkdir(parents=True, exist_ok=True)
    with Server(["--api-key", KEY, "--max-open", "1"]) as server, sync_playwright() as playwright:
        server.wait(HEADERS)
        # Chromium's own sandbox cannot be set up by the root user of a container.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=sandbox)
        for visit in (desktop, phone, refusals):
            visit(browser, server)
            print(f"{visit.__name__}: as it should be")
        browser.close()


def desktop(browser: Browser, server: Server) -> None:
    """Key, conversation, tree, race, in light and dark."""
    with opened(browser, server, DESKTOP) as page:
        expect(page.locator("#problem")).to_contain_text("API key")
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_have_text("pico")
        expect(page.locator("#problem")).to_be_hidden()
        expect(page.locator("#prompt")).to_be_focused()
        page.locator("#settings summary").click()
        picture(page, "welcome")
        greedy(page, server)
        watch(page)
        letters(page)
        sampled(page, server)
        stopped(page, server)
        race(page)


def phone(browser: Browser, server: Server) -> None:
    """Nothing is wider than the screen, and all of it can be reached."""
    with opened(browser, server, PHONE, has_touch=True, is_mobile=True) as page:
        enter(page)
        ask(page, QUESTION)
        narrow = "document.scrollingElement.scrollWidth <= innerWidth"
        assert page.evaluate(narrow), "the page can be scrolled sideways"
        page.evaluate("scrollTo(0, 0)")
        picture(page, "phone", full_page=True)
        page.locator("#tab-race").tap()
        expect(page.locator("#race-prompt")).to_be_visible()
        assert page.evaluate(narrow), "the race can be scrolled sideways"


def refusals(browser: Browser, server: Server) -> None:
    """A busy server, settings that cannot be, and a server that has gone."""
    with opened(browser, server, DESKTOP) as page:
        enter(page)
        endless = {"prompt": "The", "max_tokens": 1500, "ignore_eos": True, "stream": True}
        body = {"model": "pico", "temperature": 1.0, **endless}
        with httpx2.stream("POST", f"{server.url}/v1/completions", json=body, headers=HEADERS):
            page.locator("#prompt").fill(QUESTION)
            page.keyboard.press("Enter")
            expect(page.locator("#problem")).to_contain_text("busy (429)")
            expect(page.locator("#retry")).to_have_text(re.compile(r"Try again in \d+ s"))
            expect(page.locator("#retry")).to_be_disabled()
            picture(page, "busy")
        server.rest()
        expect(page.locator("#retry")).to_be_enabled()
        page.locator("#retry").click()
        expect(page.locator(".facts")).to_be_visible()
        assert page.locator(".bubble").count() == 2
        set_fields(page, {"top-p": 3})
        page.locator("#prompt").fill("x")
        page.keyboard.press("Enter")
        assert page.locator(".bubble").count() == 2, "impossible settings are not sent"
        set_fields(page, {"top-p": 1})
        server.terminate()
        server.exit_code()
        page.locator("#prompt").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#problem")).to_contain_text("cannot be reached")


# -- what a user does -----------------------------------------------------------------------------


def greedy(page: Page, server: Server) -> None:
    """An answer token by token, the same as without a browser."""
    page.locator("#prompt").focus()
    said = ask(page, QUESTION)
    wanted = completion(server, temperature=0, max_tokens=192)
    assert said == wanted["message"]["content"], said
    tau = float(page.locator("#tau").inner_text())
    assert abs(tau - wanted["jakiro"]["tau"]) < 0.006, "the page counts as the server does"
    assert float(page.locator("#rate").inner_text()) > 0
    assert re.fullmatch(r"\d+ : \d+ %", page.locator("#share").inner_text())
    kept = page.locator("#depths").get_attribute("aria-label") or ""
    accepted, offered = (wanted["jakiro"][f"{name}_by_depth"] for name in ("accepted", "offered"))
    assert kept.count("depth") == sum(map(bool, offered)), "depths that were reached"
    assert kept.startswith(f"depth 1: {percent(accepted[0], offered[0])} %")
    shares = re.findall(r"(\d+) %", page.locator("#legend").inner_text())
    assert len(shares) >= 2 and 97 <= sum(map(int, shares)) <= 103
    assert said in page.locator("#status").inner_text(), "a screen reader is told in the end"
    page.locator(".token[title^='guessed at depth 4']").first.click()
    picture(page, "light")
    page.emulate_media(color_scheme="dark")
    picture(page, "dark")
    page.emulate_media(color_scheme="light")


def watch(page: Page) -> None:
    """The trees of all cycles: by buttons, and by the tokens they brought."""
    caption = page.locator("#cycle")
    page.locator(".bubble.assistant .facts button").click()
    found = re.fullmatch(r"cycle (\d+) of (\d+): (\d+) of (\d+) kept", caption.inner_text())
    assert found is not None and found[1] == found[2]
    tree = page.locator("#canvas svg")
    assert tree.locator(".node").count() - tree.locator(".bonus").count() == int(found[4]) + 1
    kept = tree.locator(".node.kept:not(.root, .bonus)").count()
    assert (
        kept == int(found[3]) == tree.locator(".edge.kept").count() - tree.locator(".bonus").count()
    )
    page.locator("#before").focus()
    page.keyboard.press("Enter")
    expect(caption).to_contain_text(f"cycle {int(found[1]) - 1} of")
    marked = page.locator(".token.shown")
    assert 1 <= marked.count() <= 12
    first = page.locator(".bubble.assistant .token").nth(1)
    first.click()
    expect(caption).to_contain_text("cycle 1 of")
    expect(first).to_have_class(re.compile("shown"))


def letters(page: Page) -> None:
    """A character of two tokens, a token without text, a drafter without experts."""
    spans = page.evaluate(LAY)
    assert [text for text, _, _ in spans] == ["x", "", "é", "!", ""]
    kinds = ["k-own", "k-e1", "k-own", "k-x0", "k-own"]
    assert [style for _, style, _ in spans] == [f"token {kind}" for kind in kinds]
    assert spans[1][2] == "guessed at depth 1: expert 1" and "some drafter" in spans[3][2]


def sampled(page: Page, server: Server) -> None:
    """A seed makes a sampled answer repeatable, and the turn before is part of the question."""
    set_fields(page, SAMPLED)
    before = page.locator(".bubble.assistant > p:first-child").first.inner_text()
    said = ask(page, "And today?")
    turns = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": before},
        {"role": "user", "content": "And today?"},
    ]
    fields = {name.replace("-", "_"): value for name, value in SAMPLED.items()}
    wanted = completion(server, messages=turns, **fields)
    assert said == wanted["message"]["content"], said
    assert "seed 5" in page.locator(".facts").last.inner_text()


def stopped(page: Page, server: Server) -> None:
    """Esc ends an answer; what came stays, and the server gives the answer up."""
    page.locator("#anew").click()
    assert page.locator(".bubble").count() == 0
    set_fields(page, {"temperature": 2, "max-tokens": 1500, "seed": 1, "top-p": 1})
    page.locator("#prompt").fill("Everything about everything")
    page.keyboard.press("Enter")
    expect(page.locator(".bubble.assistant .token").nth(12)).to_be_attached()
    assert page.locator("#composer .stop").is_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".facts")).to_contain_text("stopped")
    assert page.locator("#composer .start").is_visible()
    assert not any(server.rest().values())


def race(page: Page) -> None:
    """Greedy and sampled; without drafts there is a token per forward."""
    page.locator("#tab-chat").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-race")).to_be_focused()
    for fields in (SAMPLED, {"temperature": 0, "max-tokens": 192, "seed": ""}):
        set_fields(page, fields)
        page.locator("#race-prompt").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#verdict")).to_contain_text("Plain decoding")
        expect(page.locator("#verdict")).to_contain_text(re.compile(r"^Equal text, [\d.]+ times"))
        plain, drafted = (
            page.locator(f"#lane-{name} .figures").inner_text() for name in ("plain", "drafted")
        )
        assert "τ 1.00" in plain
        assert float(drafted.rpartition("τ ")[2]) > 1.3, drafted
        assert plain.split(" · ")[0] == drafted.split(" · ")[0], "as many tokens"
    picture(page, "race")
    page.locator("#verdict button").click()
    expect(page.locator("body")).not_to_have_class(re.compile("busy"))
    assert page.locator("#lane-plain .figures").inner_text() == plain


# -- tools ----------------------------------------------------------------------------------------


@contextmanager
def opened(
    browser: Browser, server: Server, viewport: dict[str, int], **options: Any
) -> Iterator[Page]:
    """The page, in a fresh profile. Nothing may be refused by its policy, fail in a script, or be
    asked of another server."""
    context = browser.new_context(viewport=viewport, device_scale_factor=1, **options)
    page, wrong = context.new_page(), []

    def said(message: ConsoleMessage) -> None:
        # The browser reports every answer that is an error, which some here are meant to be.
        if message.type in ("error", "warning") and "Failed to load" not in message.text:
            wrong.append(message.text)

    page.on("console", said)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    yield page
    context.close()
    assert not wrong, wrong
    assert all(url.startswith(server.url) for url in asked), asked


def enter(page: Page) -> None:
    """Give the key the page asks for."""
    page.locator("#key").fill(KEY)
    page.locator("#retry").click()
    expect(page.locator("#model")).to_have_text("pico")
    page.locator("#settings summary").click()


def ask(page: Page, question: str) -> str:
    """Type a question; the text of its answer, every character of which is in some token."""
    done = page.locator(".facts")
    count = done.count()
    page.locator("#prompt").fill(question)
    page.locator("#prompt").press("Enter")
    expect(done).to_have_count(count + 1)
    text = page.locator(".bubble.assistant > p:first-child").last
    said = str(text.evaluate("element => element.textContent"))
    tokens = text.locator(".token").evaluate_all("all => all.map((each) => each.textContent)")
    assert "".join(tokens) == said and len(tokens) > 8
    return said


def set_fields(page: Page, fields: dict[str, Any]) -> None:
    page.locator("#settings").evaluate("element => { element.open = true; }")
    for name, value in fields.items():
        page.locator(f"#{name}").fill(str(value))


def completion(server: Server, **fields: Any) -> Any:
    """The only choice of an answer that is asked for without the page."""
    turns = [{"role": "user", "content": QUESTION}]
    body = {"model": "pico", "messages": turns} | fields
    found = httpx2.post(f"{server.url}/v1/chat/completions", json=body, headers=HEADERS, timeout=60)
    return found.json()["choices"][0]


def percent(part: int, whole: int) -> int:
    """Rounded as the page does."""
    return int(100 * part / whole + 0.5)


def picture(page: Page, name: str, full_page: bool = False) -> None:
    page.wait_for_timeout(350)  # transitions
    page.screenshot(path=PICTURES / f"{name}.png", full_page=full_page)


if __name__ == "__main__":
    main()

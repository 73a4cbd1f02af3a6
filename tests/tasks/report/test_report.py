"""The report: its bytes, its safety against the text it shows, and its behaviour in a real browser."""

import json
import re

import pytest

from tasks.artifacts import open_store
from tasks.report import CURVES, REPORT, ReportSpec, embedded_json
from tasks.train.tables import FIGURES
from tests.tasks.report_inputs import HOSTILE, report_inputs


def build(folder, latents=40, **spec):
    store = open_store(str(folder))
    return REPORT.build(store, ReportSpec(**spec), **report_inputs(store, latents)).artifact


def embedded(html, name):
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', html, re.S)[1])


def test_the_same_inputs_give_the_same_bytes_in_another_place(tmp_path):
    one, other = build(tmp_path / "one"), build(tmp_path / "other")
    assert one.digest == other.digest
    assert str(tmp_path) not in one.path("report.html").read_text()


def test_every_curve_is_a_column_of_the_training_history():
    assert CURVES.keys() <= set(FIGURES)


@pytest.mark.parametrize(
    ("sae", "said", "fact"),
    [
        ({}, "A TopK sparse autoencoder", "at most 2 of 40 latents"),
        ({"architecture": "batch_topk"}, "A BatchTopK sparse autoencoder", "2 on average of 40 latents"),
        ({"architecture": "relu", "k": 0}, "A ReLU sparse autoencoder", "2 on average of 40 latents"),
        ({"architecture": "matryoshka", "selection": "row"}, "A Matryoshka sparse", "at most 2 of 40 latents"),
        (
            {"architecture": "transcoder", "skip": True, "target": "mlp_out.2"},
            "(counted from 0), predicts the output of the MLP in layer 2 and writes", "transcoder with a linear skip",
        ),
    ],
)
def test_it_says_which_kind_of_autoencoder_it_is_about(tmp_path, sae, said, fact):
    inputs = report_inputs(open_store(str(tmp_path)), **sae)
    html = REPORT.build(open_store(str(tmp_path)), ReportSpec(), **inputs).artifact.path("report.html").read_text()
    assert said in html and fact in html
    assert ("(k)" in html) == (sae.get("k") != 0)


def test_no_text_ends_a_script_or_becomes_an_element(tmp_path):
    html = build(tmp_path).path("report.html").read_text()
    assert HOSTILE not in html
    assert "<img" not in html
    data = embedded(html, "data")
    assert data["features"]["label"][3] == HOSTILE
    assert HOSTILE in data["strings"]
    assert len(re.findall(r"<script", html)) == len(re.findall(r"</script>", html)) == 4  # data, two blocks, the code


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "\u2028", "é漢😀", "\ud800", 'a"b\\'])
def test_embedded_json_is_inert_and_reads_back(text):
    found = embedded_json({"t": [text]})
    assert "<" not in found
    assert found.encode()
    assert json.loads(found) == {"t": [text]}


def test_texts_are_bounded_and_only_of_the_best_features(tmp_path):
    html = build(tmp_path, features_with_texts=5, texts_per_kind=1).path("report.html").read_text()
    data, block = embedded(html, "data"), embedded(html, "block-0")
    assert set(block) == {"0", "1", "2", "3", "4"}
    assert data["features"]["block"] == [0] * 5 + [None] * 35
    assert all(len(found["top"]) == len(found["sample"]) == 1 for found in block.values())
    assert 'id="block-1"' not in html


def test_what_scoring_held_back_is_not_shown(tmp_path):
    html = build(tmp_path).path("report.html").read_text()
    assert " shown" not in embedded(html, "data")["strings"]


def test_a_run_with_nothing_alive_still_has_a_page(tmp_path):
    artifact = build(tmp_path, latents=1)
    assert artifact.summary["features"] == 1
    assert artifact.summary["with_texts"] == 0


@pytest.fixture(scope="module")
def report_page(tmp_path_factory):
    """One report for all tests that only read it."""
    return build(tmp_path_factory.mktemp("report")).path("report.html")


def opened(page, path, hash_=""):
    """The report in a browser, with every request the page makes noted."""
    page.requests = []
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(path.as_uri() + hash_)
    page.wait_for_selector("html[data-ready]")
    return page


def fragment(page):
    """What stands behind the address, asked of the page itself: `page.url` hears of it a moment later."""
    return page.evaluate("location.hash")


def labels(page):
    return page.locator("#body .row .name b").all_text_contents()


@pytest.mark.browser
def test_search_sort_and_filter_narrow_the_table(browser_page, report_page):
    page = opened(browser_page, report_page)
    assert page.locator("#count").text_content() == "40 features"
    assert labels(page)[0] == "words about topic 0"
    page.get_by_role("button", name="No.", exact=True).click()
    page.get_by_role("button", name="No.", exact=True).click()
    assert page.locator("#body .row .id").first.text_content() == "39"
    page.fill("#search", "TOPIC 17")
    assert labels(page) == ["words about topic 17"]
    page.fill("#search", "subword topic 37")
    assert labels(page) == ["words about topic 37"]
    page.fill("#search", "nothing like this")
    assert page.locator("#body").text_content().startswith("No feature matches")
    page.fill("#search", "")
    page.select_option("#state", "few")
    assert page.locator("#count").text_content() == "1 of 40 features"
    assert "too few" in page.locator("#body .row").first.text_content()
    page.select_option("#state", "dead")
    assert labels(page) == ["never fires"]
    page.select_option("#state", "all")
    page.locator("#scores rect.hit[tabindex]").last.click()
    assert page.locator("#range").is_visible()
    assert page.locator("#count").text_content() != "40 features"
    page.locator("#range").click()
    assert page.locator("#count").text_content() == "40 features"


@pytest.mark.browser
def test_a_feature_opens_with_its_texts_by_click_key_and_link(browser_page, report_page):
    page = opened(browser_page, report_page, "#latent=21")
    detail = page.locator("#detail")
    assert detail.locator("h3").text_content() == "words about topic 21"
    assert page.locator("#body .row[aria-selected=true] .id").text_content() == "21"
    assert detail.locator("mark").first.text_content() == "word"
    assert detail.locator(".word").first.text_content() == "subword"
    assert detail.locator(".texts li").count() == 3
    assert "漢" in detail.text_content()
    page.locator("#grid").focus()
    page.keyboard.press("ArrowDown")
    assert detail.locator("h3").text_content() == "words about topic 22"
    assert fragment(page) == "#latent=22"
    page.locator("#body .row", has_text="topic 20").click()
    assert fragment(page) == "#latent=20"
    detail.locator(".near a").first.click()
    detail.locator("h3", has_text="words about topic 21").wait_for()
    assert fragment(page) == "#latent=21"
    page.keyboard.press("Escape")
    assert fragment(page) == ""
    page.keyboard.press("/")
    page.keyboard.type("topic 8")
    page.keyboard.press("Enter")
    assert detail.locator("h3").text_content() == "words about topic 8"


@pytest.mark.browser
def test_hostile_text_is_shown_as_text_and_no_request_leaves_the_page(browser_page, report_page):
    page = opened(browser_page, report_page, "#latent=3")
    assert page.locator("#detail h3").text_content() == HOSTILE
    assert HOSTILE in page.locator("#detail .texts").first.text_content()
    assert page.locator("img").count() == 0
    assert page.evaluate("window.broken") is None
    assert [url for url in page.requests if not url.startswith(("file://", "data:"))] == []
    assert len([url for url in page.requests if url.startswith("file://")]) == 1
    assert page.locator("#curves figure").count() == 2
    assert page.locator("#density rect.hit").count() > 3


@pytest.mark.browser
def test_thousands_of_features_are_drawn_by_parts(browser_page, tmp_path):
    page = opened(browser_page, build(tmp_path, latents=5000, features_with_texts=10).path("report.html"))
    assert page.locator("#grid").get_attribute("aria-rowcount") == "5001"
    assert page.locator("#body .row").count() < 60
    page.locator("#grid").focus()
    page.keyboard.press("End")
    page.wait_for_function("document.querySelector('#body .row[aria-selected=true] .id')?.textContent === '4999'")
    assert page.locator("#body .row").count() < 60


@pytest.mark.browser
def test_a_phone_reads_a_feature_as_a_sheet_and_comes_back(browser_page, report_page):
    browser_page.set_viewport_size({"width": 390, "height": 800})
    page = opened(browser_page, report_page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not page.locator("#detail").is_visible()
    page.locator("#body .row", has_text="topic 2").first.click()
    assert page.locator("#detail").is_visible()
    page.get_by_role("button", name="Back to the list").click()
    assert not page.locator("#detail").is_visible()


@pytest.mark.browser
def test_the_theme_can_be_switched(browser_page, report_page):
    page = opened(browser_page, report_page)
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before

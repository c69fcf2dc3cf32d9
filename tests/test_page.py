"""What the page of all results does in a real Chromium; test_report.py: what it holds."""

from functools import partial
from math import log
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest
from browser import View, missing, start, until
from report_project import EVIL, small_project

from reprune.__main__ import main
from reprune.results.lines import collect, summary
from reprune.results.render.html import content, page
from reprune.results.styles import outline, style

absent = missing()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return small_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if absent:
        pytest.skip(absent)
    pytest.importorskip("selenium")
    driver = start(tmp_path_factory.mktemp("profile"))
    driver.set_script_timeout(10)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def file(root):
    assert main(["report", "--root", str(root)]) == 0
    return (root / "results/index.html").as_uri()


@pytest.fixture
def view(chromium, file):
    shown = View(chromium, file).open()
    yield shown
    assert chromium.get_log("browser") == [], "the browser's console must stay empty"
    shown("localStorage.clear()")


def test_the_table_shows_ours_beside_the_papers(view):
    assert view.rows() == ["A", "B", "C", "own"]
    assert view.column("pruned") == ["93.00 → 92.00 ± 1.00", "93.00 → 80.50", "not run", "93.00 → 70.25"]
    assert view.column("claim_pruned") == ["93.04 → 93.06", "93.04 → 92.54", "93.04 → 93.06", ""]
    assert view.one("header strong").text == (
        "1 paper, 3 claims: 0 reproduced, 0 within x, 1 off by x, 1 short only, 1 not run.")
    assert view.column("delta") == ["-1.00 ± 1.00", "-12.50", "", "-22.75"]
    assert view.column("claim_delta") == ["+0.02", "-0.50", "+0.02", ""]
    assert view.column("claim_macs_drop") == ["27.6", "27.6", "> 80.0", ""]
    rows = view.all("#table tbody tr[aria-rowindex]")
    assert [row.get_attribute("class") for row in rows] == ["", "pale", "unrun", ""]
    assert view("const b = document.getElementById('table-box'); return b.scrollWidth <= b.clientWidth")
    assert view("return performance.getEntriesByType('resource').length") == 0          # nothing else was loaded
    assert view.column("verdict") == [summary_of(view)[0]["verdict"], "short run", "", "no claim"]


def summary_of(view):
    return summary(Path(url2pathname(urlparse(view.file).path)).parents[1])


def test_sorting_by_mouse_and_keyboard(view):
    head = view.head("delta")
    head.find_element("tag name", "button").click()
    assert view.rows() == ["A", "own", "B", "C"] and head.get_attribute("aria-sort") == "descending"
    view.press("ENTER")
    assert view.rows() == ["own", "A", "B", "C"] and head.get_attribute("aria-sort") == "ascending"   # short: after
    view.head("series").find_element("tag name", "button").click()
    assert view.rows()[-1] == "own" and head.get_attribute("aria-sort") is None
    assert "sort=series" in view.driver.current_url


def test_filters_are_kept_in_the_address(view):
    view.choose("#f-method", "l1")
    view.one("#q").send_keys("RECOVER a")
    assert view.rows() == [] and view.one("#none").is_displayed()
    view.one("#none .reset").click()
    assert len(view.rows()) == 4 and view.one("#count").text == "4 of 4 rows"
    view.choose("#f-section", "short")
    view.head("macs_drop").find_element("tag name", "button").click()
    assert view.rows() == ["B"] and view.one("#count").text == "1 of 4 rows"
    link = view.driver.current_url
    view.open(link.removeprefix(view.file))
    assert view.rows() == ["B"] and view.one("#f-section").get_attribute("value") == "short"
    assert view.head("macs_drop").get_attribute("aria-sort") == "descending"
    key = summary_of(view)[0]["keys"].split()[1]
    assert view.open(f"#q={key}").rows() == ["A"]                       # a run is found by its key
    assert len(view.open("#section=gone&sort=gone&net=gone&x=gone").rows()) == 4


def test_details_lead_to_claim_record_and_command(view, root):
    keys = summary_of(view)[0]["keys"].split()
    view.one('#table tbody a[data-at="0"]').click()
    dialog = view.one("#details[open]")
    assert "Table 1" in dialog.text and "Some Paper" in dialog.text and "arXiv:1" in dialog.text
    assert "python run.py experiments=some2020/A" in dialog.text and "abc123" in dialog.text
    links = [a.get_attribute("href") for a in dialog.find_elements("css selector", 'a[href^="runs/"]')]
    assert [(root / "results/runs" / f"{key}.json").as_uri() for key in keys] == links
    view.one("#details summary").click()
    assert "recipe.recover.lr: 0.001" in dialog.text and "method.allocation.rates.1: 0.5" in dialog.text
    assert f"line={keys[0]}" in view.driver.current_url
    view.driver.back()
    until(lambda: not view.all("#details[open]") and len(view.rows()) == 4)
    view.open(f"#line={keys[2]}")                                       # any run of a line leads to it
    assert view.one("#details-title").text == "some2020/A"
    view.press("ESCAPE")
    until(lambda: not view.all("#details[open]") and "line=" not in view.driver.current_url)


def test_the_command_is_copied(view):
    view.driver.execute_cdp_cmd("Browser.grantPermissions", {
        "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    view.open("#line=some2020/C")
    view.one("#details .copy").click()
    until(lambda: "Copied." in view.one("#details .command").text)
    copied = view.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied == "python run.py experiments=some2020/C"


def test_texts_stay_texts(view):
    view.choose("#f-section", "short")
    view.one('#table tbody a[data-at="0"]').click()
    assert EVIL in view.one("#details").text and view.driver.title == "reprune: results"
    assert len(view.all("script")) == 2 and not view.all("img")


def test_the_keyboard_goes_from_row_to_row(view):
    for _ in range(60):
        view.press("TAB")
        if view("return document.activeElement.dataset.at") is not None and view(
                "return !!document.activeElement.closest('tbody')"):
            break
    focused = partial(view, "return document.activeElement.innerText")
    assert focused() == "some2020/A"
    assert view("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    view.press("ARROW_DOWN", "ARROW_DOWN")
    assert focused() == "some2020/C"
    view.press("END", "ARROW_DOWN", "ARROW_UP")
    assert focused() == "some2020/C"
    view.press("HOME", "ENTER")
    assert view.one("#details-title").text == "some2020/A"
    view.press("ESCAPE")
    assert focused() == "some2020/A"


def test_the_plot_draws_ours_and_the_papers_where_they_belong(view):
    marks = {mark.get_attribute("aria-label").split(",")[0] + mark.get_attribute("class").removeprefix("mark"): mark
             for mark in view.all(".mark[data-at]")}
    assert set(marks) == {"some2020/A ours", "some2020/B ours pale", "some2020/own ours", "some2020/A paper",
                          "some2020/B paper", "some2020/C paper"}

    def middle(name):
        box = marks[name].find_element("css selector", ".shape").rect
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    (ax, ay), (bx, by), (ox, oy) = map(middle, ("some2020/A ours", "some2020/B ours pale", "some2020/own ours"))
    cx = middle("some2020/C paper")[0]
    assert ax == pytest.approx(ox, abs=0.5) and (bx - ax) == pytest.approx((cx - ax), abs=0.5)     # 50, 50, 80, > 80 %
    whole = log((100 - 70.25) / (100 - 92))                           # the axis is logarithmic in the error
    assert (by - ay) / (oy - ay) == pytest.approx(log((100 - 80.5) / (100 - 92)) / whole, abs=0.01)
    bar = marks["some2020/A ours"].find_element("css selector", ".bar").rect["height"]
    assert bar == pytest.approx(log(9 / 7) * (oy - ay) / whole, abs=1.5)           # one standard deviation up, one down
    shapes = {name: marks[name].find_element("css selector", ".shape") for name in marks}
    assert shapes["some2020/C paper"].value_of_css_property("fill") == "none"
    for name, series in (("A", "l1"), ("own", "random from scratch")):
        colour, marker = style(series)
        assert shapes[f"some2020/{name} ours"].get_attribute("d") == outline(marker)
        assert shapes[f"some2020/{name} ours"].value_of_css_property("fill") == f"rgb{tuple(bytes.fromhex(colour[1:]))}"
    assert not marks["some2020/B ours pale"].find_elements("css selector", ".bar")
    assert [button.text for button in view.all("#legend button")] == ["l1", "random from scratch"]


def test_the_plot_answers_to_mouse_and_keyboard(view):
    from selenium.webdriver import ActionChains
    mark, tip = view.one('.mark[aria-label^="some2020/B,"]'), view.one("#tip")
    assert not tip.is_displayed()
    ActionChains(view.driver).move_to_element(mark.find_element("css selector", ".shape")).perform()
    until(tip.is_displayed)                                       # a busy browser takes its time
    assert tip.text.splitlines()[:3] == ["some2020/B", "l1", "Top-1, %: 80.50"]
    ActionChains(view.driver).move_to_element(view.one("h1")).perform()
    until(lambda: not tip.is_displayed())
    view("document.querySelector('.mark[tabindex=\"0\"]').focus()")
    first = tip.text
    view.press("ARROW_RIGHT")
    assert tip.is_displayed() and tip.text != first
    row = tip.text.splitlines()[0].split(",")[0]
    view.press("ENTER")
    assert view.one("#details-title").text == row
    view.press("ESCAPE")
    view("document.querySelector('#legend button').click()")
    assert {m.get_attribute("aria-label").split(",")[0] for m in view.all(".mark[data-at]")} == {"some2020/own"}
    assert "hide=l1" in view.driver.current_url
    view.choose("#y", "delta")
    assert "Δ top-1, points: -22.75" in view.one(".mark[data-at]").get_attribute("aria-label")


def test_dark_by_preference_and_by_choice(view):
    def back():
        return view("return getComputedStyle(document.body).backgroundColor")

    emulate = partial(view.driver.execute_cdp_cmd, "Emulation.setEmulatedMedia")
    try:
        emulate({"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
        until(lambda: back() == "rgb(20, 23, 27)")
        view.one("#theme").click()
        assert back() == "rgb(255, 255, 255)"
        view.open()
        assert back() == "rgb(255, 255, 255)"                           # the choice is kept
    finally:
        emulate({"features": []})


def test_a_phone_scrolls_the_table_and_not_the_page(view):
    cdp = view.driver.execute_cdp_cmd
    try:
        cdp("Emulation.setDeviceMetricsOverride", {"width": 375, "height": 812, "deviceScaleFactor": 2, "mobile": True})
        for hash in ("", f"#line={summary_of(view)[0]['keys'].split()[0]}"):
            view.open(hash)
            assert view("return [document.documentElement.scrollWidth, innerWidth]") == [375, 375]
        assert view("const d = document.getElementById('details'); return d.scrollWidth <= d.clientWidth")
        assert view("const b = document.getElementById('table-box'); return b.scrollWidth > b.clientWidth")
        assert view("return 3 * document.querySelector('#table tbody .name').offsetWidth") < 375
    finally:
        cdp("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture(scope="module")
def long(root, tmp_path_factory):
    """A page of a thousand lines."""
    many = content(collect(root, []))
    row, cells, series, kind, runs, config, differs, pale = many["lines"][0]
    at = many["columns"].index("delta")
    many["lines"] = [[row, [*cells[:at], n / 10, *cells[at + 1:]], series, kind, [[f"{n:016x}", *runs[0][1:]]], config,
                      differs, pale] for n in range(1000)]
    file = tmp_path_factory.mktemp("long") / "index.html"
    file.write_text(page(many), encoding="utf-8")
    return file.as_uri()


def test_of_many_rows_those_in_sight_are_drawn(chromium, long):
    view = View(chromium, long).open("#sort=-delta")
    wait = "requestAnimationFrame(() => requestAnimationFrame(() => arguments[0]()))"
    assert view.one("#count").text == "1,000 of 1,000 rows" and len(view.column("delta")) < 300
    assert view.column("delta")[0].startswith("+99.90")
    view("const box = document.getElementById('table-box'); box.scrollTop = box.scrollHeight")
    chromium.execute_async_script(wait)
    assert view.column("delta")[-1].startswith("+0.00") and len(view.column("delta")) < 300
    view("document.querySelector('#table tbody a[tabindex=\"0\"]').focus()")
    view.press("HOME")
    assert view("return document.activeElement.dataset.at") == "0"
    view.press("END", "ENTER")
    assert f"line={0:016x}" in chromium.current_url
    view.press("ESCAPE")
    view("dispatchEvent(new Event('beforeprint'))")
    assert len(view.column("delta")) == 1000                            # on paper, all of them
    assert chromium.get_log("browser") == []

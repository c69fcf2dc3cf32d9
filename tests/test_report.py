"""The page of all results: what it holds, and what it does in a real Chromium."""

import base64
import hashlib
import json
import re
import time
from functools import partial

import pytest
from browser import missing, start
from test_tables import CLAIM, REPOSITORY, ROW, record

from reprune.report import content, main, page
from reprune.summary import summary

EVIL = '</script><script>document.title = "gone"</script><img src=x onerror="document.title = 1">'
absent = missing()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four rows of a paper (two claimed and run, one not run, one of our own), several seeds, and a hostile text."""
    root = tmp_path_factory.mktemp("page")
    folder = root / "experiments" / "some2020"
    folder.mkdir(parents=True)
    for name, claim in (("A", CLAIM), ("B", CLAIM.replace("93.06", "92.54").replace("Table 1,", f"'{EVIL}',")),
                        ("C", CLAIM.replace("27.6", "80").replace("macs_drop", "macs_drop_min")), ("own", "")):
        text = ROW.format(name=name) + claim
        if name == "C":
            text = text.replace("- override /method", "- override /model: net\n  - override /dataset: cifar10\n"
                                                      "  - override /method")
        (folder / f"{name}.yaml").write_text(text)
    (root / "experiments" / "papers.yaml").write_text("some2020: {title: Some Paper, venue: CONF, arxiv: '1'}\n")
    for seed, top1 in enumerate((92.0, 93.0, 91.0)):
        record(root, seed=seed, top1=top1)
    record(root, row="B", top1=80.5, epochs__recover=2, pruned__macs=400)
    record(root, row="own", top1=70.25, method="random", config__recipe__recover={"epochs": 40, "from_scratch": True})
    return root


def built(root):
    errors = []
    text = page(content(root, errors))
    assert errors == []
    return text


def data(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


# ---------------------------------------------------------------- what it holds

def test_the_page_holds_every_line_and_every_run(root):
    found, lines = data(built(root)), summary(root)
    assert len(found["lines"]) == len(lines) == 4
    for line, (row, cells, _, _, runs, _, _) in zip(lines, found["lines"], strict=True):
        values = {**dict(zip(found["columns"], cells, strict=True)), **found["rows"][row]["values"]}
        known = {name: found["texts"][value] if name in found["text"] and value is not None else value
                 for name, value in values.items()}
        assert known == {name: line[name] for name in known} and {"delta", "claim_delta", "verdict"} <= set(known)
        assert " ".join(run[0] for run in runs) == (line["keys"] or "")


def test_the_same_records_give_the_same_bytes(root, tmp_path):
    for name in ("one", "two"):
        files = sorted(root.rglob("*.*"), reverse=name == "two")
        for file in files:
            copy = tmp_path / name / file.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
        assert main(["--root", str(tmp_path / name)]) == 0
    one, two = ((tmp_path / name / "results/index.html").read_bytes() for name in ("one", "two"))
    assert one == two == built(root).encode() and str(tmp_path).encode() not in one


@pytest.mark.parametrize("what", ["record", "claim", "page"])
def test_check_tells_of_a_page_that_differs(what, tmp_path, capsys):
    folder = tmp_path / "experiments/some2020"
    folder.mkdir(parents=True)
    (folder / "A.yaml").write_text(ROW.format(name="A") + CLAIM)
    (tmp_path / "experiments/papers.yaml").write_text("some2020: {title: Some Paper}\n")
    file, out = record(tmp_path), tmp_path / "results/index.html"
    check = partial(main, ["--check", "--root", str(tmp_path)])
    assert check() == 1 and not out.exists()
    assert main(["--root", str(tmp_path)]) == 0 and check() == 0
    capsys.readouterr()
    if what == "record":
        file.unlink()
    elif what == "claim":
        (folder / "A.yaml").write_text(ROW.format(name="A") + CLAIM.replace("93.06", "93.07"))
    else:
        out.write_text(out.read_text().replace("92", "93", 1))
    before = out.read_bytes()
    assert check() == 1 and out.read_bytes() == before
    assert capsys.readouterr().err == "error: results/index.html differs from what the records say: run make report\n"


def test_a_bad_record_is_named_once_and_the_rest_is_built(root, tmp_path, capsys):
    for file in root.rglob("*.*"):
        copy = tmp_path / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    (tmp_path / "results/runs/ff.json").write_text("{")
    assert main(["--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: results/runs/ff.json: ") and error.count("\n") == 1
    assert len(data((tmp_path / "results/index.html").read_text("utf-8"))["lines"]) == 4


def test_nothing_is_loaded_and_only_the_page_itself_may_act(root):
    text = built(root)
    frame = re.sub(r'(id="data">).*?(</script>)', r"\1\2", text, flags=re.S)
    assert not re.search(r"\bsrc(set)?=|@import|url\(|\bimport\(", frame)
    assert re.findall("<link .*", frame) == ['<link rel="icon" href="data:,">']
    for kind in ("style", "script"):
        inner = re.search(rf"<{kind}>(.*?)</{kind}>", text, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text and EVIL not in text


def test_the_committed_page_is_what_the_committed_records_say(capsys):
    assert main(["--check", "--root", str(REPOSITORY)]) == 0, capsys.readouterr().err


# ---------------------------------------------------------------- what it does

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
    assert main(["--root", str(root)]) == 0
    return (root / "results/index.html").as_uri()


def until(holds):
    """Waits for what the browser does in its own time."""
    end = time.monotonic() + 5
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    assert holds()


class View:
    """The page in the browser; view(script, ...) runs a script in it."""

    def __init__(self, driver, file):
        self.driver, self.file = driver, file

    def __call__(self, script, *values):
        return self.driver.execute_script(script, *values)

    def open(self, hash=""):
        self.driver.get("about:blank")
        self.driver.get(self.file + hash)
        return self

    def one(self, css):
        return self.driver.find_element("css selector", css)

    def all(self, css):
        return self.driver.find_elements("css selector", css)

    def press(self, *keys):
        from selenium.webdriver import ActionChains, Keys
        for key in keys:
            ActionChains(self.driver).send_keys(getattr(Keys, key, key)).perform()

    def column(self, name):
        return self("""document.getElementById('table-box').scrollLeft = 0;
            const at = [...document.querySelectorAll('#table thead th[data-column]')]
            .sort((a, b) => a.getBoundingClientRect().left - b.getBoundingClientRect().left)
            .findIndex((th) => th.dataset.column === arguments[0]);
            return [...document.querySelectorAll('#table tbody tr[aria-rowindex]')]
                .map((row) => (row.cells[at].querySelector('a') || row.cells[at]).innerText)""", name)

    def rows(self):
        return [text.removeprefix("some2020/") for text in self.column("row")]

    def choose(self, css, value):
        from selenium.webdriver.support.select import Select
        Select(self.one(css)).select_by_value(value)

    def head(self, name):
        return self.one(f'th[data-column="{name}"]')


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
    assert view.column("delta") == ["-1.00 ± 1.00", "-12.50", "", "-22.75"]
    assert view.column("claim_delta") == ["+0.02", "-0.50", "+0.02", ""]
    assert view.column("claim_macs_drop") == ["27.6", "27.6", "> 80.0", ""]
    assert view.column("epochs")[1] == "baseline 160/160, recover 2/40" and view.column("seeds") == ["3", "1", "", "1"]
    assert view.column("latency_ratio") == ["1.60x", "1.60x", "", "1.60x"]
    assert view("return performance.getEntriesByType('resource').length") == 0          # nothing else was loaded
    assert view.column("verdict") == [line["verdict"] or "" for line in summary_of(view)]


def summary_of(view):
    from pathlib import Path
    from urllib.parse import unquote, urlparse
    return summary(Path(unquote(urlparse(view.file).path)).parents[1])


def test_sorting_by_mouse_and_keyboard(view):
    head = view.head("delta")
    head.find_element("tag name", "button").click()
    assert view.rows() == ["A", "B", "own", "C"] and head.get_attribute("aria-sort") == "descending"
    view.press("ENTER")
    assert view.rows() == ["own", "B", "A", "C"] and head.get_attribute("aria-sort") == "ascending"   # not run: last
    view.head("method").find_element("tag name", "button").click()
    assert view.rows()[-1] == "own" and head.get_attribute("aria-sort") is None
    assert "sort=method" in view.driver.current_url


def test_filters_are_kept_in_the_address(view):
    view.choose("#f-method", "l1")
    view.one("#q").send_keys("RECOVER a")
    assert view.rows() == [] and view.one("#none").is_displayed()
    view.one("#none .reset").click()
    assert len(view.rows()) == 4 and view.one("#count").text == "4 of 4 rows"
    view.choose("#f-section", "short")
    view.head("seeds").find_element("tag name", "button").click()
    assert view.rows() == ["B"] and view.one("#count").text == "1 of 4 rows"
    link = view.driver.current_url
    view.open(link.removeprefix(view.file))
    assert view.rows() == ["B"] and view.one("#f-section").get_attribute("value") == "short"
    assert view.head("seeds").get_attribute("aria-sort") == "descending"
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
    assert (by - ay) / (oy - ay) == pytest.approx((92 - 80.5) / (92 - 70.25), abs=0.01)
    bar = marks["some2020/A ours"].find_element("css selector", ".bar").rect["height"]
    assert bar == pytest.approx(2 * (oy - ay) / (92 - 70.25), abs=1.5)             # one standard deviation up, one down
    shapes = {name: marks[name].find_element("css selector", ".shape") for name in marks}
    assert shapes["some2020/C paper"].value_of_css_property("fill") == "none"
    assert shapes["some2020/A ours"].get_attribute("d") != shapes["some2020/own ours"].get_attribute("d")
    assert not marks["some2020/B ours pale"].find_elements("css selector", ".bar")
    assert [button.text for button in view.all("#legend button")] == ["l1", "random from scratch"]


def test_the_plot_answers_to_mouse_and_keyboard(view):
    from selenium.webdriver import ActionChains
    mark, tip = view.one('.mark[aria-label^="some2020/B,"]'), view.one("#tip")
    assert not tip.is_displayed()
    ActionChains(view.driver).move_to_element(mark.find_element("css selector", ".shape")).perform()
    assert tip.text.splitlines()[:3] == ["some2020/B", "l1", "Top-1, %: 80.50"]
    ActionChains(view.driver).move_to_element(view.one("h1")).perform()
    assert not tip.is_displayed()
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
    finally:
        cdp("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture(scope="module")
def long(root, tmp_path_factory):
    """A page of a thousand lines."""
    many = content(root, [])
    row, cells, series, kind, runs, config, differs = many["lines"][0]
    at = many["columns"].index("delta")
    many["lines"] = [[row, [*cells[:at], n / 10, *cells[at + 1:]], series, kind, [[f"{n:016x}", *runs[0][1:]]], config,
                      differs] for n in range(1000)]
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

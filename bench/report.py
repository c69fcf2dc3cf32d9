"""The page of all results (results/index.html) in a real Chromium: the committed records, and ten thousand.

    python bench/report.py [RECORDS]        one to two minutes on two cores

The many are those of records.py, once with three seeds per line, once each a line of its own, the worst case. Times
are medians of seven in the page itself, until the browser has laid out what is shown; `sort` is of the slowest column,
`scroll` is a jump, until the second next frame. Heap: JavaScript's, after a garbage collection.
"""

import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from tabulate import tabulate

from reprune.results.lines import collect
from reprune.results.render import html

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench")]
import records  # noqa: E402
from browser import missing, start  # noqa: E402

MANY, REPEATS = 10_000, 7
TIME = """const t = performance.now(); (() => { %s })(); document.body.offsetHeight; return performance.now() - t"""
HEADS = "return [...document.querySelectorAll('#table thead th[data-column]')].map((th) => th.dataset.column)"
CLICK = "document.querySelector('#table thead th[data-column=\"%s\"] button').click()"
TYPE = "const q = document.getElementById('q'); q.value = '%s'; q.dispatchEvent(new Event('input'))"
SCROLL = """const [done, begin, box] = [arguments[0], performance.now(), document.getElementById('table-box')];
    box.scrollTop = %d; requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - begin)))"""
PLOT = "const y = document.getElementById('y'); y.value = '%s'; y.dispatchEvent(new Event('change'))"


def measure(root: Path, name: str) -> dict:
    begin, errors = perf_counter(), []
    data = html.content(collect(root, errors))
    text = html.page(data)
    built = perf_counter() - begin
    assert not errors, errors[0]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "index.html"
        file.write_text(text, encoding="utf-8")
        driver = start(Path(folder) / "profile")
        try:
            driver.get(file.as_uri())
            loaded = driver.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
            driver.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
            heap = driver.execute_script("return performance.memory.usedJSHeapSize")

            def times(*scripts: str) -> float:
                return median(driver.execute_script(TIME % scripts[i % len(scripts)]) for i in range(REPEATS))

            sort = max(times(CLICK % column) for column in driver.execute_script(HEADS))
            search, plot = times(TYPE % "l1", TYPE % "l1 resnet20"), times(PLOT % "delta", PLOT % "top1")
            driver.execute_script(TYPE % "")
            bottom = driver.execute_script("return document.getElementById('table-box').scrollHeight")
            scroll = median(driver.execute_async_script(SCROLL % (bottom * i / REPEATS)) for i in range(1, REPEATS))
            elements = driver.execute_script("return document.querySelectorAll('*').length")
            problems = driver.get_log("browser")
            assert not problems, problems
        finally:
            driver.quit()
    return {"records": name, "lines": len(data["lines"]), "build, s": round(built, 2),
            "page, MB": round(len(text.encode()) / 1e6, 2), "load, ms": round(loaded), "sort, ms": round(sort, 1),
            "search, ms": round(search, 1), "plot, ms": round(plot, 1), "scroll, ms": round(scroll, 1),
            "heap, MB": round(heap / 1e6, 1), "elements": elements}


def main(many: int = MANY) -> list[dict]:
    if absent := missing():
        return [{"records": absent}]
    lines = [measure(ROOT, "committed")]
    for seeds in (3, 1):
        records.SEEDS = seeds
        with tempfile.TemporaryDirectory() as folder:
            lines.append(measure(records.project(Path(folder), many), f"{many:,}, seeds: {seeds}"))
    return lines


if __name__ == "__main__":
    print(tabulate(main(*map(int, sys.argv[1:])), headers="keys", tablefmt="github"))

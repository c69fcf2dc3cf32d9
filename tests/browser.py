"""A real Chromium without a window, for tests and benchmarks of pages; nothing of it outlives its process."""

import shutil
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--enable-precise-memory-info")


def missing() -> str | None:
    """Why there is no browser here, or None."""
    if not any(map(shutil.which, NAMES)):
        return f"no browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)"
    return None if shutil.which("chromedriver") else "no chromedriver (Debian: apt-get install chromium-driver)"


def start(profile: Path, width: int = 1440, height: int = 1000):
    """profile: an empty folder of its own."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService
    options = ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, NAMES)))
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return Chrome(options, ChromeService(shutil.which("chromedriver")))


def until(holds):
    """Waits for what the browser does in its own time."""
    end = time.monotonic() + 60                                   # of a machine that does other work too
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

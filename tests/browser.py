"""A real Chromium without a window, for tests and benchmarks of pages; nothing of it outlives its process."""

import shutil
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

"""Render the report page in a real browser."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium (apt-get install chromium)")


def _browse(path, folder, *options):
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=2000",
        *options,
        path.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def shot(path, target, width, height, *options):
    """Take a screenshot: pixels int (height, width, 3), also written as a PNG to `target`."""
    size = ("--hide-scrollbars", "--force-device-scale-factor=1", f"--window-size={width},{height}")
    result = _browse(path, target.parent, *size, f"--screenshot={target}", *options)
    assert target.is_file(), result.stderr
    return np.asarray(Image.open(target).convert("RGB")).astype(int)


def colours(pixels):
    """The number of colours in each of eight bands from top to bottom; an empty band has few."""
    numbers = pixels @ (1 << 16, 1 << 8, 1)
    return [len(np.unique(band)) for band in np.array_split(numbers, 8)]


def probed(path, folder, width):
    """Load the page in a window of `width` pixels, run its script, click through it, and read what it shows.

    Returns texts by name: its width, and the content of its table (before and after sorting), choices and plots.
    """
    probe = folder / "probe.html"
    probe.write_text(path.read_text().replace("</body>", PROBE + "</body>"))
    html = _browse(probe, folder, f"--window-size={width},900", "--dump-dom").stdout
    return dict(re.findall(r'<i id="probe-(\w+)">(.*?)</i>', html, re.S))


PROBE = """<script>
const put = (name, text) => {
  const element = document.createElement("i");
  document.body.append(Object.assign(element, {id: "probe-" + name, textContent: text}));
};
put("window", innerWidth);
put("width", document.documentElement.scrollWidth);
const rows = () => [...document.querySelectorAll("#table tbody th")].map((cell) => cell.textContent).join(" ");
put("rows", rows());
document.querySelectorAll("#table thead button")[2].click();
put("sorted", rows());
const selects = document.querySelectorAll(".browser select");
const choices = [...selects[2].options].map((option) => option.value);
put("choices", choices.join(" "));
const images = document.querySelectorAll(".stage img");
put("stage", [images.length, ...[...images].map((image) => image.alt)].join(" "));
const box = document.querySelectorAll(".browser input[type=checkbox]")[1];
box.click();
put("masked", document.querySelectorAll(".stage .mask").length);
const labels = [...document.querySelectorAll(".plots text")].map((text) => text.textContent.trim());
put("plots", labels.filter((label) => choices.includes(label)).join(" "));
</script>"""

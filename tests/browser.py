"""What a real browser makes of the page."""

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
    """The page as int (height, width, 3), and as a PNG in `target`."""
    size = ("--hide-scrollbars", "--force-device-scale-factor=1", f"--window-size={width},{height}")
    done = _browse(path, target.parent, *size, f"--screenshot={target}", *options)
    assert target.is_file(), done.stderr
    return np.asarray(Image.open(target).convert("RGB")).astype(int)


def colours(pixels):
    """How many there are in each of eight bands from top to bottom: few where there is nothing to see."""
    return [len(np.unique(band.reshape(-1, 3), axis=0)) for band in np.array_split(pixels, 8)]


def probed(path, folder, width):
    """What the page itself reports in a window of such a width, after its script has run: how wide it is, what its
    tables, choices and plots hold, and their order after a click."""
    probe = folder / "probe.html"
    probe.write_text(path.read_text().replace("</body>", PROBE + "</body>"))
    html = _browse(probe, folder, f"--window-size={width},900", "--dump-dom").stdout
    return dict(re.findall(r'<i id="probe-(\w+)">(.*?)</i>', html, re.S))


PROBE = """<script>
const put = (name, text) => document.body.append(Object.assign(document.createElement("i"), {id: "probe-" + name, textContent: text}));
put("window", innerWidth);
put("width", document.documentElement.scrollWidth);
const rows = () => [...document.querySelectorAll("#table tbody th")].map((one) => one.textContent).join(" ");
put("rows", rows());
document.querySelectorAll("#table thead button")[2].click();
put("sorted", rows());
const selects = document.querySelectorAll(".browser select");
put("choices", [...selects[2].options].map((one) => one.value).join(" "));
const images = document.querySelectorAll(".stage img");
put("stage", [images.length, ...[...images].map((one) => one.alt)].join(" "));
const box = document.querySelectorAll(".browser input[type=checkbox]")[1];
box.click();
put("masked", document.querySelectorAll(".stage .mask").length);
put("plots", [...document.querySelectorAll(".plots text")].map((one) => one.textContent.trim()).filter((one) => [...selects[2].options].some((own) => own.value === one)).join(" "));
</script>"""

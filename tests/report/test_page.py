"""The page, as text and in a real browser."""

import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import colours, needs_browser, probed, shot
from PIL import Image
from samples import HARDWARE, METHODS, RECIPES, write_metrics, write_predictions

from segquant.base.classes import ADE20K
from segquant.base.files import write_json
from segquant.report import bits, page, plots
from segquant.report.pictures import _fit
from segquant.report.results import collect, from_json, to_json, with_intervals


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page of float32, int2 and a method that is unavailable, and the arguments that it was made from."""
    folder = tmp_path_factory.mktemp("page")
    write_metrics(folder)
    pictures = write_predictions(folder, {"float32": 0.9, "int2": 0.6})
    results = with_intervals(collect(folder, METHODS), folder)
    arguments = results, pictures, folder / "predictions", list(ADE20K), HARDWARE, RECIPES
    page.write_page(folder / "index.html", *arguments)
    return folder / "index.html", arguments


def test_the_page_is_self_contained_and_shows_every_method(made):
    path, arguments = made
    html = path.read_text()
    assert "https://" not in html and "http://" not in html.replace("http://www.w3.org", "")  # names of XML namespaces
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    for text in ("float32", "int2", "55.00", "no CUDA", "Testium 9", "fixed-64x64-v1, 2 images"):
        assert text in html
    assert html.count("data:image/jpeg") == 2 and html.count("data:image/png") == 2 * (3 + 1)  # int2's differences
    assert html.count("<svg") == 2 and html.count("no CUDA") == 1
    assert html.count("mages of 512x512 on Testium 9 (avx2), 2 cores") == 2
    before = path.read_bytes()
    page.write_page(path, *arguments)
    assert path.read_bytes() == before


@pytest.mark.parametrize("size", [(1000, 1), (1, 1000)])
def test_a_picture_of_one_pixel_in_height_or_width_keeps_it(size):
    assert min(_fit(Image.new("RGB", size), Image.Resampling.BILINEAR).size) == 1


def test_the_page_has_the_figures_that_were_measured(made):
    path, (results, *_) = made
    html = path.read_text()
    row = re.search(r'<th scope="row">int2</th>(<td>55\.00.*?)</tr>', html).group(1)
    cells = re.findall(r"<td>([^<]*?)(?: <small>(.*?)</small>)?</td>", row)
    values = dict(zip((column.key for column in page.COLUMNS), cells))
    low, high = results["int2"].loss_interval
    assert values["loss_points"] == ("15.00", f"{low:.2f} to {high:.2f}")
    assert values["size_mb"][0] == "2.00" and values["speedup"] == ("1.05", "0.90 to 1.20")
    assert values["speedup_eager"][0] == "1.05"  # eager is its own engine
    assert 'class="loss" style="--heat: 1.00">30.0<' in html  # trees: 0.9 and 0.6
    assert '<td class="share" style="--share: 100.0%">75.00</td>' in html


def test_the_loss_of_each_layer_is_shown_where_it_was_measured(made, tmp_path):
    path, arguments = made
    rows = [
        {"module": "classifier", "parameters": 9, "bits": 2, "mean_iou_loss": 1.5, "snr_db": None},
        {"module": "fuse", "parameters": 9, "bits": 2, "mean_iou_loss": 0.1, "snr_db": 20.0},
    ]
    layers = {"protocol": "fixed-64x64-v1", "images": 16, "algorithm": "hqq", "group_size": 32, "layers": rows}
    page.write_page(tmp_path / "index.html", *arguments, layers)
    html = (tmp_path / "index.html").read_text()
    assert "fixed-64x64-v1, the first 16 images; hqq, groups of 32" in html and html.count("<svg") == 3
    assert "classifier" in html and "#layers" in html
    assert "#layers" not in path.read_text()


def test_the_page_shows_what_each_layer_got(made, tmp_path):
    path, arguments = made
    layer = {"bits": 3, "group_size": 64, "divergence": 1e-5, "smallest": 2e-4}
    given = {"allocation": {"layers": {"decode_head.classifier": layer, "early": {**layer, "bits": 8}}}}
    for method, info in {"auto": given, "int8": {"format": "segquant-3"}}.items():
        write_json(tmp_path / method / "quantization.json", info)
    allocations = bits.read(tmp_path, ["auto", "int8"])
    assert allocations == {"auto": given["allocation"]["layers"]}
    page.write_page(tmp_path / "with.html", *arguments, None, allocations)
    html = (tmp_path / "with.html").read_text()
    assert all(
        text in html for text in ('href="#bits"', "3 / 64", "8 / 64", "decode_head.classifier", "auto: the divergence")
    )
    assert "#bits" not in path.read_text()
    rows = [{"module": "early", "parameters": 9, "bits": 2, "mean_iou_loss": 1.5, "snr_db": None}]
    layers = {"protocol": "fixed-64x64-v1", "images": 16, "algorithm": "hqq", "group_size": 32, "layers": rows}
    page.write_page(tmp_path / "both.html", *arguments, layers, allocations)
    both = (tmp_path / "both.html").read_text()
    assert "the bits that a budget gave the layer" in both and "a budget gave" not in html
    assert both.count("8 / 64") == 2 and both.count("3 / 64") == 1  # the second figure has the measured layer alone


def test_texts_from_outside_are_text(made, tmp_path):
    """Names of classes, ids, reasons, protocols, machines and versions, each as a script, an attribute and an entity."""
    path, (results, pictures, predictions, names, hardware, recipes) = made
    hostile = "</script><script>alert(1)</script><h1>x\" onload='alert(1) &lt; half \ud800"
    copy = tmp_path / "predictions"
    shutil.copytree(predictions, copy)
    for file in copy.glob("*/classes.csv"):
        file.write_text(file.read_text().replace("tree", '"' + hostile[:-1].replace('"', '""') + '"'))
    for picture in copy.glob(f"*/{pictures[0]['id']}.png"):
        picture.rename(picture.with_name("<script>&.png"))
    content = to_json(results)
    content["float32"]["protocol"] = content["float32"]["algorithm"] = hostile
    content["int2"]["speed"] = {**content["int2"]["speed"], "failed": hostile}
    content["float8_dynamic"] = {"unavailable": hostile}
    pictures = [{**pictures[0], "id": "<script>&"}]
    odd = (
        from_json(content),
        pictures,
        copy,
        [hostile] * len(names),
        {**hardware, "processor": hostile, "torch": hostile},
    )
    page.write_page(tmp_path / "index.html", *odd, recipes)
    html, before = (tmp_path / "index.html").read_text(), path.read_text()
    for tag in ("<script", "</script", "<h1", "onload='", "<svg"):
        assert html.count(tag) == before.count(tag), tag
    escaped = "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;h1&gt;x&#34; onload=&#39;alert(1) &amp;lt; half \\ud800"
    assert html.count(escaped) >= 10 and html.count("&lt;script&gt;&amp;") == 5
    svg = plots.tradeoff([plots.Point(hostile[:-1], 1.0, 50.0, (40.0, 60.0))], hostile[:-1])
    parts = list(ElementTree.fromstring(svg).iter())
    assert [part.text for part in parts].count(hostile[:-1]) == 2
    assert not any(part.tag.endswith(("script", "h1")) or "onload" in part.attrib for part in parts)


def test_a_loss_that_is_shown_as_zero_has_no_colour():
    assert page.heat(0.04) == page.heat(-0.04) == page.heat(None) == "" and "gain" in page.heat(-0.06)


def test_an_empty_column_is_left_out():
    assert page._filled([("method", "x", "y"), ("a", "", "1"), ("b", "", "")]) == [
        ["method", "y"],
        ["a", "1"],
        ["b", ""],
    ]
    assert page._filled([("method", "x")]) == [[]]


def test_the_pareto_front_is_what_no_point_dominates():
    assert plots.pareto([(1, 5), (2, 5), (2, 7), (3, 6), (4, 8)]) == {0, 2, 4}
    assert plots.pareto([(1, 1), (1, 1)]) == {0, 1}


@needs_browser
@pytest.mark.parametrize(("width", "height"), [(1280, 1600), (500, 1600)])
def test_a_browser_shows_it_at_two_widths(made, tmp_path, width, height):
    pixels = shot(made[0], tmp_path / "page.png", width, height)
    assert pixels.shape == (height, width, 3)
    assert min(colours(pixels)) > 8


@needs_browser
def test_dark_is_dark_and_light_is_light(made, tmp_path):
    light = shot(made[0], tmp_path / "light.png", 800, 600)
    dark = shot(made[0], tmp_path / "dark.png", 800, 600, "--blink-settings=preferredColorScheme=0")
    assert np.median(light) > 200 and np.median(dark) < 60


@needs_browser
def test_nothing_is_wider_than_a_phone_and_every_method_can_be_chosen(made, tmp_path):
    shown = probed(made[0], tmp_path, 500)
    assert int(shown["width"]) <= int(shown["window"])
    assert shown["rows"].split() == ["float32", "int2", "float8_dynamic"]
    assert shown["sorted"].split() == ["int2", "float32", "float8_dynamic"]
    assert shown["choices"].split() == ["photo", "truth", "float32", "int2"]
    assert shown["stage"].split() == ["2", "truth", "int2"]
    assert shown["masked"] == "1"
    assert shown["plots"].split() == ["float32", "int2", "float32", "int2"]

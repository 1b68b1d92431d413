"""Classes are matched by name, and by a label map where names differ."""

import numpy as np
import pytest
from conftest import ROOT

from segquant.base.config import BY_POSITION
from segquant.base.errors import DataError
from segquant.data import label_map
from segquant.data.label_map import match_classes, same_classes

MAP = ROOT / "data" / "label_maps" / "cityscapes_to_camvid.yaml"
AB = ["a", "b"]


def test_the_committed_label_map():
    table = match_classes(["m"] * 19, ["c"] * 11, MAP)
    assert table.dtype == np.uint8
    assert table.tolist() == [3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10]


def test_a_model_class_may_have_no_counterpart(tmp_path):
    (tmp_path / "map.yaml").write_text("map: {0: 1, 1: null}")
    assert match_classes(AB, AB, tmp_path / "map.yaml").tolist() == [1, 255]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("map: {0: 0}", "lacks model class 1"),
        ("map: {0: 0, 1: 0, 2: 1}", "names an unknown model class 2"),
        ("map: {0: 0, 1: 9}", "maps to an unknown data set class 9"),
        ("- 1", "is not a YAML file with"),
        ("map: {a: b}", "is not a YAML file with"),
        ("map: {0: 0, 1: 0.9}", "is not a YAML file with"),
        ("map: {0: 0, 1: true}", "is not a YAML file with"),
        ('map: {"0": 0, "1": 1}', "has the text '0' for a class id: write 0 without quotes"),
        ("map: {0: 0, 1: 0, 1: 1}", "is not valid YAML: the key 1 stands twice, again in line 1"),
    ],
)
def test_an_unusable_label_map_is_reported(text, message, tmp_path):
    path = tmp_path / "map.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError) as error:
        match_classes(AB, AB, path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (["wall", "bed ", "crt screen"], ["wall", "bed", "crt screen"]),
        (["Wall", "traffic_light"], ["wall", "traffic light"]),
        (["building, edifice", "sky"], ["building", "sky"]),
        (["building", "sky"], ["building, edifice", "sky"]),
        (["Developed, High", "Developed, Low"], ["Developed, High", "Developed, Low"]),
        (["B\u00fcrgersteig"], ["Bu\u0308rgersteig"]),
        (["LABEL_0", "LABEL_1"], ["cat", "dog"]),  # a model that names no class
        (["cat", "dog"], ["LABEL_0", "LABEL_1"]),
    ],
)
def test_the_same_names_in_the_same_order_need_no_map(model, data):
    assert match_classes(model, data) is None and same_classes(model, data)


@pytest.mark.parametrize(
    ("model", "data", "which"), [(["LABEL_0", "LABEL_1"], AB, "model"), (AB, ["LABEL_0", "LABEL_1"], "data set")]
)
def test_classes_without_names_are_taken_by_position_with_one_warning(model, data, which, caplog):
    label_map._warn_nameless.cache_clear()
    match_classes(model, model)
    match_classes(model, data, BY_POSITION)
    assert not caplog.messages
    for _ in range(3):
        match_classes(model, data)
    (message,) = caplog.messages
    assert message.startswith(f"the 2 classes of the {which} have no names: equal class ids are taken for the same")


def test_names_that_begin_alike_are_told_apart():
    names = ["Developed, High", "lane (solid, white)", "Developed, Low", "lane (solid, yellow)"]
    assert match_classes(names, names[::-1]).tolist() == [3, 2, 1, 0] and not same_classes(names, names[::-1])


def test_names_that_differ_by_case_or_hyphen_only_are_told_apart_as_they_are_written():
    names = ["Road", "road", "traffic-light", "traffic light"]
    assert match_classes(names, names) is None
    assert match_classes(names, names[::-1]).tolist() == [3, 2, 1, 0]
    with pytest.raises(DataError, match="class 0 is 'ROAD' in the model but 'Road' in the data set"):
        match_classes(["ROAD", "sky"], ["Road", "road"])


def test_the_same_names_in_another_order_are_mapped_by_name(caplog):
    with caplog.at_level("INFO"):
        assert match_classes(["sky", "Road", "car"], ["car", "sky", "road"]).tolist() == [1, 2, 0]
    assert caplog.text.count("mapped by name") == 1


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (["a"] * 19, ["c"] * 11, "the model has 19 classes but the data set has 11: give data.label_map"),
        (["sky", "road"], ["sky", "water"], "class 1 is 'road' in the model but 'water' in the data set: give data.la"),
        (["sky", "road"], ["road", "water"], "class 0 is 'sky' in the model but 'road' in the data set"),
        (["car; sedan", "sky"], ["car; suv", "sky"], "class 0 is 'car; sedan' in the model but 'car; suv'"),
        (["Developed, High", "x"], ["Developed", "Developed, Low"], "class 1 is 'x' in the model"),
        (["sky", "sky"], ["sky", "road"], "class 1 is 'sky' in the model but 'road'"),
        (["LABEL_0", "cat"], ["dog", "cat"], "class 0 is 'LABEL_0' in the model but 'dog'"),
    ],
)
def test_other_names_are_refused(model, data, message):
    with pytest.raises(DataError, match=message) as caught:
        match_classes(model, data)
    assert "\n" not in str(caught.value)


def test_equal_numbers_are_the_same_class_where_the_user_says_so():
    assert match_classes(["sky", "road"], ["road", "water"], BY_POSITION) is None
    with pytest.raises(DataError, match="has 3 classes but the data set has 2"):
        match_classes(["a", "b", "c"], AB, BY_POSITION)

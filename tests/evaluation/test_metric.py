import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segquant.base.errors import DataError
from segquant.evaluation.hf_metric import MeanIoU
from segquant.evaluation.metric import compute, new_confusion, update


def independent(predictions, labels, classes, ignore=255):
    """An independent implementation of the definitions, class by class, on sets of pixels."""
    iou, accuracy, right, counted = [], [], 0, 0
    pairs = [(p[l != ignore], l[l != ignore]) for p, l in zip(predictions, labels)]
    for c in range(classes):
        inter = sum(int(np.logical_and(p == c, l == c).sum()) for p, l in pairs)
        union = sum(int(np.logical_or(p == c, l == c).sum()) for p, l in pairs)
        area = sum(int((l == c).sum()) for _, l in pairs)
        iou.append(inter / union if union else np.nan)
        accuracy.append(inter / area if area else np.nan)
        right, counted = right + inter, counted + area
    return np.array(iou), np.array(accuracy), right / counted


def _case(seed, images, classes):
    rng = np.random.default_rng(seed)
    shapes = [tuple(rng.integers(1, 12, 2)) for _ in range(images)]
    labels = [rng.choice([*range(classes), 255], s).astype(np.uint8) for s in shapes]
    labels[0].flat[0] = 0  # at least one labelled pixel
    return [rng.integers(0, classes, s).astype(np.uint8) for s in shapes], labels


def test_a_prediction_of_no_class_is_wrong_and_counts_towards_no_other_class():
    confusion = new_confusion(2)
    update(confusion, torch.tensor([[0, 255, 1]], dtype=torch.uint8), torch.tensor([[0, 0, 1]], dtype=torch.uint8))
    scores = compute(confusion)
    np.testing.assert_array_equal(scores.iou, [0.5, 1.0])
    np.testing.assert_array_equal(scores.accuracy, [0.5, 1.0])
    assert scores.overall_accuracy == pytest.approx(2 / 3)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 9))
@settings(deadline=None)
def test_scores_equal_the_definitions(seed, images, classes):
    predictions, labels = _case(seed, images, classes)
    confusion = new_confusion(classes)
    for p, l in zip(predictions, labels):
        update(confusion, torch.from_numpy(p), torch.from_numpy(l))
    scores = compute(confusion)
    iou, accuracy, overall = independent(predictions, labels, classes)
    np.testing.assert_allclose(scores.iou, iou, rtol=1e-12)
    np.testing.assert_allclose(scores.accuracy, accuracy, rtol=1e-12)
    assert scores.mean_iou == pytest.approx(np.nanmean(iou), abs=1e-12)
    assert scores.mean_accuracy == pytest.approx(np.nanmean(accuracy), abs=1e-12)
    assert scores.overall_accuracy == pytest.approx(overall, abs=1e-12)


def test_absent_classes_are_skipped_and_classes_only_predicted_count_zero():
    confusion = new_confusion(4)
    label = torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8)
    update(confusion, torch.tensor([[0, 2, 1, 3]], dtype=torch.uint8), label)
    scores = compute(confusion)
    np.testing.assert_array_equal(scores.iou, [0.5, 1.0, 0.0, np.nan])  # 3 was predicted on an ignored pixel only
    assert scores.mean_iou == 0.5
    np.testing.assert_array_equal(scores.accuracy, [0.5, 1.0, np.nan, np.nan])
    assert scores.overall_accuracy == pytest.approx(2 / 3)


def test_the_evaluate_metric_has_hugging_faces_keys_and_values():
    predictions, labels = _case(3, 4, 6)
    got = MeanIoU().compute(
        predictions=[p.tolist() for p in predictions],
        references=[l.tolist() for l in labels],
        num_labels=6,
        ignore_index=255,
    )
    iou, accuracy, overall = independent(predictions, labels, 6)
    assert set(got) == {"mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "per_category_accuracy"}
    np.testing.assert_allclose(got["per_category_iou"], iou, rtol=1e-12)
    np.testing.assert_allclose(got["per_category_accuracy"], accuracy, rtol=1e-12)
    assert got["overall_accuracy"] == pytest.approx(overall, abs=1e-12)


def test_reduce_labels_reads_raw_ade20k_annotations():
    raw = np.array([[0, 1, 2], [150, 1, 0]])
    got = MeanIoU().compute(
        predictions=[[[7, 0, 1], [149, 1, 9]]],
        references=[raw.tolist()],
        num_labels=150,
        ignore_index=255,
        reduce_labels=True,
    )
    assert got["overall_accuracy"] == 0.75
    assert np.isnan(got["per_category_iou"][20])
    filled = MeanIoU().compute(predictions=[[[1]]], references=[[[5]]], num_labels=3, nan_to_num=0.0, label_map={5: 1})
    assert filled["per_category_iou"].tolist() == [0.0, 1.0, 0.0] and filled["mean_iou"] == 1.0
    ignored = MeanIoU().compute(predictions=[[[1]]], references=[[[255]]], num_labels=3, nan_to_num=0.5)
    assert {float(np.mean(value)) for value in ignored.values()} == {0.5}  # no pixel counts
    assert got["per_category_iou"][149] == 1.0


@pytest.mark.parametrize(
    ("reference", "options", "message"),
    [
        ([[0, -100]], {}, "label -100 is neither a class below 3 nor ignored: pass ignore_index=-100"),
        ([[0, 3]], {}, "label 3 is neither a class below 3 nor ignored"),
        ([[0, 3]], {"ignore_index": 7}, "label 3 is neither a class"),
        ([[0, 255]], {"ignore_index": -100}, "label 255 is neither a class"),
        ([[0, 1, 2]], {}, "make them equal"),
        ([[0, 1]], {"num_labels": 300}, "num_labels is 300: 1 to 255 classes work"),
    ],
)
def test_a_label_that_is_no_class_is_refused(reference, options, message):
    metric = MeanIoU(keep_in_memory=True)  # a file would stay locked, and the next metric wait for it
    with pytest.raises(DataError, match=message):
        metric.compute(predictions=[[[0, 1]]], references=[reference], **{"num_labels": 3, **options})


def test_pytorchs_ignore_index_is_ignored_where_it_is_passed():
    scores = MeanIoU().compute(predictions=[[[0, 1]]], references=[[[0, -100]]], num_labels=3, ignore_index=-100)
    assert scores["mean_iou"] == scores["overall_accuracy"] == 1.0


def test_a_prediction_below_zero_is_refused():
    with pytest.raises(DataError, match="prediction -1 is no class id"):
        MeanIoU().compute(predictions=[[[0, -1]]], references=[[[0, 1]]], num_labels=3)

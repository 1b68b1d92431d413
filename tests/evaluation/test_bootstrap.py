import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from segquant.base.errors import DataError
from segquant.evaluation import metric
from segquant.evaluation.bootstrap import compare, interval, resampled
from segquant.evaluation.counts import Counts, locate_counts, read_counts, write_counts
from segquant.evaluation.means import means

CLASSES = ["wall", "floor", "tree"]


def _images(seed, count, right=0.7):
    """(id, cells) of random images and their total confusion.

    Labels are the same for every seed; predictions include 3, which is no class.
    """
    labels, rng, total, images = np.random.default_rng(0), np.random.default_rng(seed), metric.new_confusion(3), []
    for i in range(count):
        label = torch.from_numpy(labels.choice([0, 1, 2, 255], (6, 7)))
        prediction = torch.where(
            torch.from_numpy(rng.random((6, 7)) < right), label, torch.from_numpy(rng.choice([0, 1, 2, 3], (6, 7)))
        )
        images.append((f"{i:03d}", metric.cells(metric.update(total, prediction, label))))
    return images, total


def _counts(folder, seed, count, right=0.7, name="a"):
    images, total = _images(seed, count, right)
    write_counts(folder / f"{name}.parquet", images, CLASSES, "fixed-64x64-v1")
    return read_counts(folder / f"{name}.parquet"), total


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
@settings(deadline=None, max_examples=20)
def test_the_counts_of_images_add_up_to_the_confusion_and_its_scores(tmp_path_factory, seed, count):
    counts, total = _counts(tmp_path_factory.mktemp("counts"), seed, count)
    np.testing.assert_array_equal(counts.confusion(), total.numpy())
    scores = metric.compute(total)
    actual = means(*(part.sum(0) for part in counts.by_image()))
    assert [float(score) for score in actual] == [scores.mean_iou, scores.mean_accuracy, scores.overall_accuracy]
    assert counts.ids == [f"{i:03d}" for i in range(count)] and counts.classes == CLASSES


def test_the_order_of_images_does_not_change_the_bytes(tmp_path):
    images, _ = _images(0, 5)
    write_counts(tmp_path / "a", images, CLASSES, "p")
    write_counts(tmp_path / "b", images[::-1], CLASSES, "p")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_intervals_agree_with_scipy(tmp_path):
    """scipy draws differently: the percentile intervals agree up to the randomness of 10,000 draws."""
    first, _ = _counts(tmp_path, 1, 60, 0.70)
    second, _ = _counts(tmp_path, 2, 60, 0.66, "b")
    comparison = compare(first, second)
    tables = [np.concatenate(counts.by_image(), 1) for counts in (first, second)]

    def statistic(index, axis=-1):
        chosen = [table[index].sum(-2).reshape(*index.shape[:-1], 3, 3) for table in tables]
        a, b = (means(*np.moveaxis(sums, -2, 0))[0] for sums in chosen)
        return b - a

    expected = stats.bootstrap(
        (np.arange(60),),
        statistic,
        n_resamples=10_000,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(5),
    ).confidence_interval
    actual = comparison["mean_iou"]
    width = expected.high - expected.low
    assert actual["low"] == pytest.approx(expected.low, abs=0.05 * width)
    assert actual["high"] == pytest.approx(expected.high, abs=0.05 * width)
    assert (
        actual["low"] < actual["difference"] < actual["high"]
        and actual["difference"] == actual["second"] - actual["first"]
    )


def test_an_interval_covers_the_truth_as_often_as_it_claims():
    """For 200 samples of 80 images from one distribution, about 95 % of the intervals contain its overall accuracy."""
    rng, covered = np.random.default_rng(0), 0
    for seed in range(200):
        right = rng.binomial(100, rng.beta(7, 3, 80))
        images = [(f"{i:02d}", np.array([[0, 0, n], [0, 1, 100 - n]])) for i, n in enumerate(right)]
        covered += _covers(images, 0.7, seed)
    assert 180 <= covered <= 200


def _covers(images, truth, seed):
    cells = np.concatenate([image_cells for _, image_cells in images])
    image = np.repeat(np.arange(len(images)), [len(image_cells) for _, image_cells in images])
    counts = Counts(["a", "b"], "p", [name for name, _ in images], image, *cells.T)
    low, high = interval(resampled([counts], 400, seed)[0][:, 2])
    return low <= truth <= high


def test_intervals_tell_noise_from_a_real_difference(tmp_path):
    first, _ = _counts(tmp_path, 1, 30)
    same = compare(first, first)["mean_iou"]
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    second, _ = _counts(tmp_path, 9, 30, 0.70, "b")  # the same distribution with other noise
    noise = compare(first, second)["mean_iou"]
    assert noise["low"] < 0 < noise["high"]
    worse, _ = _counts(tmp_path, 1, 30, 0.50, "c")
    assert compare(first, worse)["mean_iou"]["high"] < 0


def test_results_on_different_images_are_not_compared(tmp_path):
    first, _ = _counts(tmp_path, 1, 4)
    second, _ = _counts(tmp_path, 1, 5, name="b")
    with pytest.raises(DataError, match="the results differ in images"):
        compare(first, second)
    third, _ = _counts(tmp_path, 1, 4, name="c")
    third.pixels[0] += 1  # of another label map
    with pytest.raises(DataError, match="labels"):
        compare(first, third)


def test_a_missing_or_broken_result_raises_one_line(tmp_path):
    with pytest.raises(DataError, match="has no counts by image of 'int4': run `dvc repro`"):
        locate_counts(tmp_path, "int4")
    _counts(tmp_path / "confusion", 0, 2, name="int8")
    with pytest.raises(DataError, match="of 'int4': choose from int8"):
        locate_counts(tmp_path, "int4")
    assert locate_counts(tmp_path, "int8") == tmp_path / "confusion" / "int8.parquet"
    _counts(tmp_path / "two/data/roads/confusion", 0, 2, name="int8")
    with pytest.raises(DataError, match="of 'int8': give --metrics one of its data sets, .*two/data/roads$"):
        locate_counts(tmp_path / "two", "int8")
    (tmp_path / "broken").write_text("x")
    with pytest.raises(DataError, match="holds no counts by image"):
        read_counts(locate_counts(tmp_path, str(tmp_path / "broken")))

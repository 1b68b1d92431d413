"""The same metric as an `evaluate.Metric`, for scripts that use Hugging Face's evaluate.

`evaluate.load("mean_iou")` downloads a script; this class needs no connection.
"""

from __future__ import annotations

import datasets
import evaluate
import numpy as np
import torch

from segquant.base.errors import DataError
from segquant.data.images import IGNORE
from segquant.evaluation.metric import compute, new_confusion, update

_DESCRIPTION = "Mean IoU, mean accuracy and overall accuracy of semantic segmentation over a whole data set."
_INPUTS = """
    predictions (list of (H, W) integer arrays): predicted class ids.
    references (list of (H, W) integer arrays): labelled class ids.
    num_labels (int): the number of classes.
    ignore_index (int): the label of ignored pixels, after label_map and reduce_labels.
    nan_to_num (float, optional): the value that replaces NaN in the results; means are of the classes that are there.
    label_map (dict, optional): old label to new label, applied first.
    reduce_labels (bool): subtract 1 from every label, 0 becoming 255 (raw ADE20K annotations).
"""


class MeanIoU(evaluate.Metric):
    """`MeanIoU().compute(predictions=..., references=..., num_labels=150, ignore_index=255)`.

    Returns the keys of Hugging Face's `mean_iou`: `mean_iou`, `mean_accuracy`, `overall_accuracy`,
    `per_category_iou`, `per_category_accuracy`. Raises DataError for a label that is neither a class nor
    `ignore_index`, such as PyTorch's -100: Hugging Face's arithmetic counts the predictions there as false positives.
    """

    def _info(self) -> evaluate.MetricInfo:
        pixels = datasets.Sequence(datasets.Sequence(datasets.Value("int32")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": pixels, "references": pixels}),
        )

    def _compute(
        self,
        predictions,
        references,
        num_labels,
        ignore_index=255,
        nan_to_num=None,
        label_map=None,
        reduce_labels=False,
    ):
        if not 1 <= num_labels <= IGNORE:
            raise DataError(f"num_labels is {num_labels}: 1 to {IGNORE} classes work")
        confusion = new_confusion(num_labels)
        for prediction, reference in zip(predictions, references):
            original = np.asarray(reference).astype(np.int64)
            label = original.copy()
            for old, new in (label_map or {}).items():
                label[original == old] = new
            if reduce_labels:
                label = np.where((label == 0) | (label == 255), 255, label - 1)
            prediction = np.asarray(prediction).astype(np.int64)
            _check(label, prediction, num_labels, ignore_index)
            label = np.where(label == ignore_index, IGNORE, label)
            update(confusion, torch.from_numpy(prediction), torch.from_numpy(label))
        scores = compute(confusion)
        results = {
            "mean_iou": scores.mean_iou,
            "mean_accuracy": scores.mean_accuracy,
            "overall_accuracy": scores.overall_accuracy,
            "per_category_iou": scores.iou,
            "per_category_accuracy": scores.accuracy,
        }
        if nan_to_num is not None:
            results = {key: np.nan_to_num(value, nan=nan_to_num) for key, value in results.items()}
        return results


def _check(label: np.ndarray, prediction: np.ndarray, num_labels: int, ignore_index: int) -> None:
    if label.shape != prediction.shape:
        raise DataError(f"a prediction has the shape {prediction.shape} but its label {label.shape}: make them equal")
    strange = label[((label < 0) | (label >= num_labels)) & (label != ignore_index)]
    if strange.size:
        raise DataError(
            f"label {strange[0]} is neither a class below {num_labels} nor ignored: pass ignore_index={strange[0]} if "
            "it marks pixels without a label"
        )
    if (prediction < 0).any():
        raise DataError(f"prediction {prediction.min()} is no class id: give the argmax over classes")

"""The same metric as an `evaluate.Metric`, for scripts that use Hugging Face's evaluate.

`evaluate.load("mean_iou")` downloads a script; this class needs no connection.
"""

from __future__ import annotations

import datasets
import evaluate
import numpy as np
import torch

from segquant.evaluation.metric import compute, new_confusion, update

_DESCRIPTION = "Mean IoU, mean accuracy and overall accuracy of semantic segmentation over a whole data set."
_INPUTS = """
    predictions (list of (H, W) integer arrays): predicted class ids.
    references (list of (H, W) integer arrays): labelled class ids.
    num_labels (int): the number of classes.
    ignore_index (int): the label of ignored pixels, after label_map and reduce_labels.
    nan_to_num (float, optional): the value that replaces NaN for absent classes, before the means.
    label_map (dict, optional): old label to new label, applied first.
    reduce_labels (bool): subtract 1 from every label, 0 becoming 255 (raw ADE20K annotations).
"""


class MeanIoU(evaluate.Metric):
    """`MeanIoU().compute(predictions=..., references=..., num_labels=150, ignore_index=255)`.

    Returns the keys of Hugging Face's `mean_iou`: `mean_iou`, `mean_accuracy`, `overall_accuracy`,
    `per_category_iou`, `per_category_accuracy`.
    """

    def _info(self) -> evaluate.MetricInfo:
        pixels = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))
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
        confusion = new_confusion(num_labels)
        for prediction, reference in zip(predictions, references):
            original = np.asarray(reference).astype(np.int64)
            label = original.copy()
            for old, new in (label_map or {}).items():
                label[original == old] = new
            if reduce_labels:
                label = np.where((label == 0) | (label == 255), 255, label - 1)
            label = np.where(label == ignore_index, 255, label)
            update(confusion, torch.from_numpy(np.asarray(prediction).astype(np.int64)), torch.from_numpy(label))
        scores = compute(confusion)
        iou, accuracy = scores.iou, scores.accuracy
        if nan_to_num is not None:
            iou, accuracy = np.nan_to_num(iou, nan=nan_to_num), np.nan_to_num(accuracy, nan=nan_to_num)
        return {
            "mean_iou": float(np.nanmean(iou)),
            "mean_accuracy": float(np.nanmean(accuracy)),
            "overall_accuracy": scores.overall_accuracy,
            "per_category_iou": iou,
            "per_category_accuracy": accuracy,
        }

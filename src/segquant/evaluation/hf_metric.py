"""The same metric as an `evaluate.Metric`, for those who script with Hugging Face's evaluate.

`evaluate.load("mean_iou")` downloads its script; this one needs no hub.
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
    ignore_index (int): the label of pixels that do not count.
    reduce_labels (bool): subtract 1 from every label, 0 becoming ignored (raw ADE20K annotations).
"""


class MeanIoU(evaluate.Metric):
    """`MeanIoU().compute(predictions=..., references=..., num_labels=150, ignore_index=255)`.

    Gives the keys of Hugging Face's `mean_iou`: `mean_iou`, `mean_accuracy`, `overall_accuracy`,
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

    def _compute(self, predictions, references, num_labels: int, ignore_index: int = 255, reduce_labels: bool = False):
        confusion = new_confusion(num_labels)
        for prediction, reference in zip(predictions, references):
            label = np.asarray(reference).astype(np.int64)
            ignored = label == ignore_index
            if reduce_labels:
                ignored |= label == 0
                label = label - 1
            label[ignored] = 255
            update(confusion, torch.from_numpy(np.asarray(prediction).astype(np.int64)), torch.from_numpy(label))
        scores = compute(confusion)
        return {
            "mean_iou": scores.mean_iou,
            "mean_accuracy": scores.mean_accuracy,
            "overall_accuracy": scores.overall_accuracy,
            "per_category_iou": scores.iou,
            "per_category_accuracy": scores.accuracy,
        }

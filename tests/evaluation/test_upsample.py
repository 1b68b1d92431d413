from functools import partial
from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from segquant import models
from segquant.data.preprocessing import IMAGENET
from segquant.evaluation import metric
from segquant.evaluation.predict import forward
from segquant.evaluation.upsample import class_map, dense_class_map


def interpolated(logits, height, width):
    return F.interpolate(logits[None], (height, width), mode="bilinear", align_corners=False)[0]


def assert_same_except_ties(logits, height, width, call=class_map):
    """Where the maps differ, F.interpolate's values of the two classes are equal up to the last bits."""
    actual, expected = call(logits, height, width), interpolated(logits, height, width)
    assert actual.dtype == torch.uint8 and actual.shape == (height, width)
    chosen, best = expected.gather(0, actual.long()[None])[0], expected.amax(0)
    assert (best - chosen <= 4e-7 * logits.abs().max()).all()
    return int((actual != expected.argmax(0)).sum())


sizes = st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)


@given(st.integers(1, 12), *sizes, st.floats(0.1, 30), st.integers(0, 2**31))
@settings(deadline=None, max_examples=400)
def test_the_map_equals_interpolate_and_argmax(classes, h, w, height, width, spread, seed):
    """Larger, smaller, odd and one-pixel sizes; logits of similar and of very different classes."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(classes, h, w, generator=generator) + spread * torch.randn(classes, 1, 1, generator=generator)
    assert assert_same_except_ties(logits, height, width) == 0  # random numbers do not tie


@given(st.integers(1, 12), *sizes, st.integers(1, 5000), st.integers(0, 2**31))
@settings(deadline=None, max_examples=200)
def test_a_gpu_interpolates_a_few_classes_at_a_time(classes, h, w, height, width, chunk, seed):
    """The GPU's algorithm on a CPU, whose kernels for one class and for several classes round differently."""
    logits = torch.randint(-9, 9, (classes, h, w), generator=torch.Generator().manual_seed(seed)).float()
    differing = assert_same_except_ties(logits, height, width, partial(dense_class_map, chunk=chunk))
    if chunk >= classes * height * width:  # in one step, the first class wins a tie, as in argmax
        assert differing == 0


@given(st.integers(1, 255), *sizes, st.integers(1, 3), st.integers(0, 2**31))
@settings(deadline=None, max_examples=200)
@example(
    classes=2, h=8, w=8, height=6, width=7, levels=1, seed=0
)  # a position that is off by 1 ulp would move an edge over a tie
def test_ties_and_flat_regions(classes, h, w, height, width, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    assert_same_except_ties(torch.randint(-levels, levels, (classes, h, w), generator=generator).float(), height, width)


@pytest.mark.parametrize("size", [(512, 683), (97, 1), (31, 64), (1500, 1000)])
def test_many_cells_that_hold_many_classes(size):
    """More than one chunk, and noise that lets every class win anywhere."""
    logits = torch.randn(150, 64, 64, generator=torch.Generator().manual_seed(0))
    assert assert_same_except_ties(logits, *size) == 0


def test_other_types_and_layouts():
    logits = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = class_map(logits, 30, 30)
    assert torch.equal(class_map(logits.mT.contiguous().mT, 30, 30), expected)
    assert torch.equal(class_map(logits.bfloat16(), 30, 30), class_map(logits.bfloat16().float(), 30, 30))


def test_real_photographs(real):
    model = models.load(ROOT / "models/scenes-b0")
    for path in sorted((real / "ADEChallengeData2016/images/validation").glob("*.jpg"))[:4]:
        with Image.open(path) as image:
            pixels = IMAGENET(image.convert("RGB").resize((512, 512), Image.Resampling.BILINEAR))
        assert assert_same_except_ties(forward(model, pixels[None])[0], 512, 683) == 0


def peak_bytes(call):
    """The peak of the bytes that PyTorch allocates during `call`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def test_memory_stays_below_32_megabytes():
    coarse = torch.randn(150, 16, 16, generator=torch.Generator().manual_seed(0))
    logits = F.interpolate(coarse[None], (128, 128), mode="bicubic")[0]
    assert peak_bytes(lambda: interpolated(logits, 512, 683).argmax(0)) > 200e6
    assert peak_bytes(lambda: class_map(logits, 512, 683)) < 32e6
    assert peak_bytes(lambda: class_map(logits, 2048, 2732)) < 48e6  # 5.6 of it the map


def test_counting_pixels_takes_no_wide_copy_of_a_large_map():
    """A wide copy of a photograph of 108 million pixels takes gigabytes."""
    classes = torch.randint(0, 150, (4000, 6000), dtype=torch.uint8)
    table = torch.arange(150, dtype=torch.uint8)
    assert peak_bytes(lambda: metric.update(metric.new_confusion(150), classes, classes)) < 80e6
    assert peak_bytes(lambda: metric.mapped(classes, table)) < 100e6  # 24 of it the map

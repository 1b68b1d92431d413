import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from segquant.config import Phase, Train
from segquant.data.sources import open_source
from segquant.errors import SegquantError
from segquant.training import loop
from segquant.training.data import Crops, class_weights

CPU = torch.device("cpu")
TRAIN = Train(
    phases=(Phase(3, 32, 2), Phase(4, 64, 1)), warmup=2, images=4, workers=0, checkpoint_every=2, lr=1e-3, amp="float32"
)


@pytest.fixture
def source():
    return open_source("scenes", "train", 4)


def test_a_crop_is_a_pure_function_of_its_place_in_the_stream(source):
    whole = Crops(source, 64, 1.4, seed=0, first=0, length=9)
    later = Crops(source, 64, 1.4, seed=0, first=6, length=3)
    for i in range(3):
        for a, b in zip(whole[6 + i], later[i]):
            assert torch.equal(a, b)
    image, labels = whole[0]
    assert image.shape == (3, 64, 64) and labels.shape == (64, 64) and labels.dtype == torch.int64
    with pytest.raises(IndexError):
        later[3]


def test_an_epoch_visits_every_image_once(source):
    seen = []

    class Spy:
        def __len__(self):
            return 4

        def __getitem__(self, i):
            seen.append(i)
            return source[i]

    crops = Crops(Spy(), 32, 1.0, seed=0, first=0, length=4)
    for i in range(4):
        crops[i]
    assert sorted(seen) == [0, 1, 2, 3]


def test_the_learning_rate_warms_up_and_decays_to_nothing():
    rates = [loop.learning_rate(step, TRAIN) for step in range(TRAIN.steps)]
    assert rates[0] == TRAIN.lr / 2 and rates[1] == rates[2] == TRAIN.lr
    assert all(a > b for a, b in itertools.pairwise(rates[2:]))
    assert loop.learning_rate(TRAIN.steps, TRAIN) == 0


def test_the_loss_ignores_255_and_is_cross_entropy_at_half_size():
    logits, labels = torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 16, 16))
    labels[:, :, ::3] = 255
    upsampled = F.interpolate(logits, (8, 8), mode="bilinear", align_corners=False)
    wanted = F.cross_entropy(upsampled, labels[:, ::2, ::2], ignore_index=255)
    assert torch.allclose(loop.loss_fn(logits, labels), wanted)


def test_rare_classes_weigh_more(source):
    weights = class_weights(source, 150, 0.5)
    assert weights.shape == (150,) and weights.min() >= 0.2 and weights.max() <= 5
    assert weights[149] == 1  # absent
    assert len(set(weights.tolist())) > 5
    assert torch.equal(class_weights(source, 150, 0.0), torch.ones(150))


def _train(tiny, source, checkpoint, stop_after=None):
    model = type(tiny)(tiny.config)  # with its dropout and drop path: the random state has to come back too
    assert tiny.config.classifier_dropout_prob > 0
    model.load_state_dict(tiny.state_dict())
    if stop_after is None:
        return loop.train(model, source, TRAIN, CPU, checkpoint)
    original, count = loop.loss_fn, itertools.count()

    def dying(*arguments):
        if next(count) == stop_after:
            raise KeyboardInterrupt
        return original(*arguments)

    loop.loss_fn = dying
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.train(model, source, TRAIN, CPU, checkpoint)
    finally:
        loop.loss_fn = original
    return None


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_killed_run_ends_with_the_weights_of_one_never_stopped(stop, tiny, source, tmp_path):
    whole = _train(tiny, source, tmp_path / "a.pt")
    _train(tiny, source, tmp_path / "b.pt", stop_after=stop)
    resumed = _train(tiny, source, tmp_path / "b.pt")
    for (name, a), (_, b) in zip(whole.state_dict().items(), resumed.state_dict().items()):
        assert torch.equal(a, b), name
    assert not torch.equal(whole.state_dict()["decode_head.classifier.weight"], tiny.decode_head.classifier.weight)


def test_a_loss_that_is_not_finite_stops_at_that_step(tiny, source, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "loss_fn", lambda *a: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(SegquantError, match="the loss is nan at step 0"):
        loop.train(tiny, source, TRAIN, CPU, tmp_path / "c.pt")


def test_the_checkpoint_of_another_run_is_refused(tiny, source, tmp_path):
    _train(tiny, source, tmp_path / "a.pt")
    other = Train(phases=TRAIN.phases, seed=1, workers=0)
    with pytest.raises(SegquantError, match="is the checkpoint of another run"):
        loop.train(tiny, source, other, CPU, Path(tmp_path / "a.pt"))

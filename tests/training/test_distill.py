import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, ade20k_folder, small_segformer
from PIL import Image

from segquant import models
from segquant.base.config import Data, Distill, Eval, load
from segquant.base.errors import ConfigError, DataError, ModelError
from segquant.training import distill
from segquant.training.loop import silent

OPTIONS = Distill(
    teacher="teacher",
    student="student",
    steps=4,
    crop=64,
    batch_size=2,
    warmup=1,
    workers=0,
    lr=1e-3,
    validation_images=2,
    validate_every=2,
    checkpoint_every=2,
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A teacher, a student and labelled pictures, where the stage would run."""
    monkeypatch.chdir(tmp_path)
    models.save(small_segformer(), tmp_path / "student")
    teacher = small_segformer()
    teacher.decode_head.classifier.bias.data += 5 * torch.randn(150)
    models.save(teacher, tmp_path / "teacher")
    for split in ("training", "validation"):
        ade20k_folder(tmp_path / "data", split, 3)
    return tmp_path


def make(place, label_map=None, **options):
    params = replace(
        load(ROOT / "params.yaml"),
        data=Data("data", train_split="train", validation_split="val", label_map=label_map),
        protocol="fixed-64x64-v1",
        eval=Eval(device="cpu"),
        distill=replace(OPTIONS, **options),
    )
    distill.make_student(params, place / "out", place / "c.pt", silent)
    return models.load(place / "out")


def divergence(model, teacher):
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float(distill.distillation(model(x).logits, teacher(x).logits))


def test_the_student_comes_nearer_to_its_teacher_and_is_saved_whole(place):
    student, teacher = models.load("student"), models.load("teacher")
    taught = make(place, alpha=1.0, steps=40, lr=0.05)
    assert divergence(taught, teacher) < 0.7 * divergence(student, teacher)
    card = (place / "out" / "README.md").read_text()
    assert "`student`, trained further" in card and "`teacher`: 1.0 of the loss" in card
    metrics = json.loads((place / "out" / "metrics.json").read_text())
    assert metrics["n_images"] == 2 and metrics["protocol"] == "fixed-64x64-v1"
    assert not (place / "c.pt").exists()


def test_the_start_is_the_students_own_weights(place):
    still = make(place, lr=0.0, steps=1)
    for (name, a), (_, b) in zip(still.state_dict().items(), models.load("student").state_dict().items(), strict=True):
        if "running" not in name and "num_batches" not in name:
            assert torch.allclose(a, b, atol=1e-3), name


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_labels_count_as_alpha_says(place, alpha, monkeypatch):
    calls = []
    for name in ("cross_entropy", "distillation"):
        real = getattr(distill, name)
        monkeypatch.setattr(distill, name, lambda *a, real=real, name=name: calls.append(name) or real(*a))
    make(place, alpha=alpha, steps=1)
    assert set(calls) == ({"cross_entropy", "distillation"} if alpha else {"cross_entropy"})


def test_a_teacher_of_other_classes_is_one_line(place):
    models.save(small_segformer(19), place / "teacher")
    with pytest.raises(ModelError, match="teacher teacher has 19 classes, not the 150 of student: take another"):
        make(place)
    assert not (place / "out").exists()


def test_labels_of_other_classes_are_one_line(place):
    for name in ("teacher", "student"):
        models.save(small_segformer(19), place / name)
    with pytest.raises(ConfigError, match=r"student has 19 classes and data 150: .* does without \(distill.alpha 1"):
        make(place)


def test_labels_that_a_map_leads_to_are_not_the_models_own(place):
    """Though they are as many."""
    with pytest.raises(ConfigError, match="data others, as there is a label map: it cannot learn from these labels"):
        make(place, label_map="data/label_maps/x.yaml")
    assert not (place / "out").exists()


def test_a_teacher_alone_needs_no_labels(place):
    """CamVid's layout, the train split without trainannot/."""
    for name in ("teacher", "student"):
        models.save(small_segformer(11), place / name)
    shutil.rmtree(place / "data")
    for folder, kind in (("train", "RGB"), ("val", "RGB"), ("valannot", "L")):
        (place / "data" / folder).mkdir(parents=True)
        Image.new(kind, (60, 40), 3 if kind == "L" else (90, 60, 30)).save(place / "data" / folder / "a.png")
    with pytest.raises(DataError, match="no split 'train'"):
        make(place)
    make(place, alpha=1.0)


def test_a_missing_teacher_is_one_line(place):
    with pytest.raises(ModelError, match="model 'nowhere' is not there"):
        make(place, teacher="nowhere")

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
def workspace(tmp_path, monkeypatch):
    """The current folder, with a teacher, a student and labelled pictures."""
    monkeypatch.chdir(tmp_path)
    models.save(small_segformer(stages=4), tmp_path / "student")
    teacher = small_segformer(stages=4)
    teacher.decode_head.classifier.bias.data += 5 * torch.randn(150)
    models.save(teacher, tmp_path / "teacher")
    for split in ("training", "validation"):
        ade20k_folder(tmp_path / "data", split, 3)
    return tmp_path


def make(workspace, label_map=None, **options):
    params = replace(
        load(ROOT / "params.yaml"),
        data=Data("data", train_split="train", validation_split="val", label_map=label_map),
        protocol="fixed-64x64-v1",
        eval=Eval(device="cpu"),
        distill=replace(OPTIONS, **options),
    )
    distill.make_student(params, workspace / "out", workspace / "c.pt", silent)
    return models.load(workspace / "out")


def divergence(model, teacher):
    pixels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float(distill.distillation(model(pixels).logits, teacher(pixels).logits))


def test_the_student_approaches_its_teacher_and_is_saved_with_card_and_metrics(workspace):
    student, teacher = models.load("student"), models.load("teacher")
    distilled = make(workspace, alpha=1.0, steps=40, lr=0.05)
    assert divergence(distilled, teacher) < 0.7 * divergence(student, teacher)
    card = (workspace / "out" / "README.md").read_text()
    assert "`student`, trained further" in card and "`teacher`: 1.0 of the loss" in card
    metrics = json.loads((workspace / "out" / "metrics.json").read_text())
    assert metrics["n_images"] == 2 and metrics["protocol"] == "fixed-64x64-v1"
    assert not (workspace / "c.pt").exists()


def test_training_starts_from_the_students_weights(workspace):
    unchanged, student = make(workspace, lr=0.0, steps=1).state_dict(), models.load("student").state_dict()
    for (name, actual), (_, expected) in zip(unchanged.items(), student.items(), strict=True):
        if "running" not in name and "num_batches" not in name:
            assert torch.allclose(actual, expected, atol=1e-3), name


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_alpha_weighs_teacher_and_labels(workspace, alpha, monkeypatch):
    calls = []
    for name in ("cross_entropy", "distillation"):
        loss = getattr(distill, name)
        monkeypatch.setattr(distill, name, lambda *a, loss=loss, name=name: calls.append(name) or loss(*a))
    make(workspace, alpha=alpha, steps=1)
    assert set(calls) == ({"cross_entropy", "distillation"} if alpha else {"cross_entropy"})


def test_a_teacher_with_other_classes_is_one_line(workspace):
    models.save(small_segformer(19), workspace / "teacher")
    with pytest.raises(
        ModelError, match="teacher teacher has 19 classes, not the 150 of student: take another teacher"
    ):
        make(workspace)
    assert not (workspace / "out").exists()


def test_labels_with_other_classes_are_one_line(workspace):
    for name in ("teacher", "student"):
        models.save(small_segformer(19), workspace / name)
    with pytest.raises(ConfigError, match=r"student has 19 classes and data 150: .*without labels \(distill.alpha: 1"):
        make(workspace)


def test_mapped_labels_are_refused_even_with_as_many_classes(workspace):
    with pytest.raises(ConfigError, match="data others, or in another order: it cannot learn from these labels"):
        make(workspace, label_map="data/label_maps/x.yaml")
    assert not (workspace / "out").exists()


def test_a_teacher_alone_needs_no_labels(workspace):
    """The layout of CamVid, whose train split lacks trainannot/."""
    for name in ("teacher", "student"):
        models.save(small_segformer(11), workspace / name)
    shutil.rmtree(workspace / "data")
    for folder, kind in (("train", "RGB"), ("val", "RGB"), ("valannot", "L")):
        (workspace / "data" / folder).mkdir(parents=True)
        Image.new(kind, (60, 40), 10 if kind == "L" else (90, 60, 30)).save(workspace / "data" / folder / "a.png")
    with pytest.raises(DataError, match="no split 'train'"):
        make(workspace)
    make(workspace, alpha=1.0)


def test_a_missing_teacher_is_one_line(workspace):
    with pytest.raises(ModelError, match="model 'nowhere' is not there"):
        make(workspace, teacher="nowhere")

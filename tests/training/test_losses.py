import pytest
import torch
import torch.nn.functional as F

from segquant.training.losses import cross_entropy, distillation


def test_cross_entropy_ignores_255_and_uses_every_second_pixel():
    logits, labels = torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 16, 16))
    labels[:, :, ::3] = 255
    upsampled = F.interpolate(logits, (8, 8), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(upsampled, labels[:, ::2, ::2], ignore_index=255)
    assert torch.allclose(cross_entropy(logits, labels), expected)


def test_cross_entropy_without_a_labelled_pixel_is_zero_and_has_no_gradient():
    logits = torch.randn(1, 5, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 16, 16), 255))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def plain_kl(student, teacher, temperature, counted):
    """Hinton's loss by its definition: upsample the student's logits, then loop over pixels in float64."""
    student = F.interpolate(student.double(), teacher.shape[-2:], mode="bilinear", align_corners=False)
    total, pixels = 0.0, 0
    for b, y, x in counted.nonzero().tolist():
        p = torch.exp(teacher[b, :, y, x].double() / temperature)
        q = torch.exp(student[b, :, y, x] / temperature)
        p, q = p / p.sum(), q / q.sum()
        total, pixels = total + float((p * (p / q).log()).sum()), pixels + 1
    return temperature**2 * total / pixels


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("size", [(4, 6), (2, 3)])
def test_distillation_is_the_kl_divergence_over_classes(temperature, size):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 7, *size), 3 * torch.randn(2, 7, 4, 6)
    every_pixel = torch.ones(2, 4, 6, dtype=torch.bool)
    expected = plain_kl(student, teacher, temperature, every_pixel)
    assert float(distillation(student, teacher, temperature)) == pytest.approx(expected, rel=1e-5)
    labels = torch.randint(0, 7, (2, 4, 6))
    labels[0, :2] = labels[1, 3] = 255
    expected = plain_kl(student, teacher, temperature, labels != 255)
    assert float(distillation(student, teacher, temperature, labels)) == pytest.approx(expected, rel=1e-5)


def test_distillation_reads_the_label_at_the_centre_of_each_logit():
    """Logits are a quarter of the label's size: the label at a logit's centre, not at its corner, decides."""
    student, teacher, labels = torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2), torch.full((1, 8, 8), 255)
    labels[0, 2, 2] = 1  # the centre of the first logit
    expected = plain_kl(student, teacher, 1.0, torch.tensor([[[True, False], [False, False]]]))
    assert float(distillation(student, teacher, 1.0, labels)) == pytest.approx(expected, rel=1e-5)


def test_distillation_is_zero_for_equal_logits_and_without_labelled_pixels():
    logits = torch.randn(1, 3, 2, 2)
    assert abs(float(distillation(logits, logits))) < 1e-6
    assert float(distillation(logits, -logits, 1.0, torch.full((1, 8, 8), 255))) == 0

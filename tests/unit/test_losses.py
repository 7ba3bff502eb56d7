import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gkt_mpi.errors import ConfigError
from gkt_mpi.losses import DistillConfig, client_loss, count_correct, distil_loss, server_loss


def numpy_softmax(logit):
    power = np.exp(logit - logit.max(axis=1, keepdims=True))
    return power / power.sum(axis=1, keepdims=True)


def numpy_kl(teacher_logit, student_logit, temperature):
    """T^2 * sum_c p_c * log(p_c / q_c), mean over the batch, from probabilities in float64."""
    p, q = numpy_softmax(teacher_logit / temperature), numpy_softmax(student_logit / temperature)
    return temperature**2 * np.mean(np.sum(p * np.log(p / q), axis=1))


def numpy_cross_entropy(logit, label):
    return -np.mean(np.log(numpy_softmax(logit)[np.arange(len(label)), label]))


def draw(seed, batch=7, classes=5):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 3, (batch, classes)), rng.normal(0, 3, (batch, classes)), rng.integers(0, classes, batch)


@given(st.integers(0, 10**6), st.floats(0.5, 20), st.integers(1, 40), st.integers(2, 100))
def test_distil_loss_is_the_divergence_of_the_softened_distributions(seed, temperature, batch, classes):
    student, teacher, _ = draw(seed, batch, classes)
    found = distil_loss(torch.tensor(student), torch.tensor(teacher), temperature)
    assert float(found) == pytest.approx(numpy_kl(teacher, student, temperature), rel=1e-9, abs=1e-12)


def test_distil_loss_has_the_teacher_in_front():
    student, teacher, _ = draw(0)
    found = float(distil_loss(torch.tensor(student), torch.tensor(teacher), 3.0))
    assert found != pytest.approx(numpy_kl(student, teacher, 3.0), rel=1e-3)


def test_distil_loss_of_equal_logits_is_zero_and_sends_no_gradient_to_the_teacher():
    logit = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert float(distil_loss(logit, logit + 5.0, 3.0)) == pytest.approx(0, abs=1e-6)  # a shift changes no softmax
    student, teacher = logit.clone().requires_grad_(), (2 * logit).requires_grad_()
    distil_loss(student, teacher, 3.0).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_gradient_of_the_distillation_is_temperature_times_the_difference_of_probabilities():
    student, teacher, _ = draw(1)
    x = torch.tensor(student, requires_grad=True)
    distil_loss(x, torch.tensor(teacher), 3.0).backward()
    expected = 3.0 * (numpy_softmax(student / 3) - numpy_softmax(teacher / 3)) / len(student)
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_client_loss_is_cross_entropy_plus_alpha_times_distillation_from_the_server(alpha):
    client, server, label = draw(2)
    found = client_loss(torch.tensor(client), torch.tensor(label), torch.tensor(server), DistillConfig(alpha=alpha))
    assert float(found) == pytest.approx(numpy_cross_entropy(client, label) + alpha * numpy_kl(server, client, 3.0))


def test_server_loss_is_cross_entropy_plus_alpha_times_distillation_from_the_client_when_switched_on():
    server, client, label = draw(3)
    tensors = torch.tensor(server), torch.tensor(label), torch.tensor(client)
    both = numpy_cross_entropy(server, label) + 0.7 * numpy_kl(client, server, 2.0)
    assert float(server_loss(*tensors, DistillConfig(2.0, 0.7, on_server=True))) == pytest.approx(both)
    assert float(server_loss(*tensors, DistillConfig(2.0, 0.7))) == pytest.approx(numpy_cross_entropy(server, label))


def test_client_loss_is_cross_entropy_alone_without_a_teacher():
    client, server, label = draw(4)
    plain = numpy_cross_entropy(client, label)
    tensors = torch.tensor(client), torch.tensor(label)
    assert float(client_loss(*tensors, None, DistillConfig())) == pytest.approx(plain)
    assert float(client_loss(*tensors, torch.tensor(server), DistillConfig(on_client=False))) == pytest.approx(plain)


def test_count_correct():
    assert int(count_correct(torch.tensor([[0.0, 2.0], [3.0, 1.0], [5.0, 6.0]]), torch.tensor([1, 1, 1]))) == 2


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": -1.0}, {"alpha": -0.1}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"distill.{next(iter(wrong))}"):
        DistillConfig(**wrong)

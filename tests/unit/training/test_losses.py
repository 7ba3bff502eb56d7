import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gkt_mpi.errors import ConfigError
from gkt_mpi.training.losses import (
    DistillConfig,
    client_loss,
    count_correct,
    distil_loss,
    fpkd_weight,
    kkr,
    lka_weight,
    server_loss,
    skr,
)


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
    assert float(distil_loss(logit, logit + 5.0, 3.0)) == pytest.approx(0, abs=1e-6)  # a shift does not change softmax
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


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"alpha": -0.1},
        {"client_temperature": 0.0},
        {"server_temperature": -2.0},
        {"kkr_peak": 1.0},
        {"kkr_softener": 0.0},
        {"skr_entropy": 0.0},
        {"skr_entropy": 1.0},
        {"fpkd_scale": 0.0},
        {"lka_scale": 0.5},
        {"refine": "kkr"},  # without on_server
        {"lka": "balance"},
        {"fpkd": True, "on_client": False},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"distill.{next(iter(wrong))}"):
        DistillConfig(**wrong)


def test_a_peak_below_that_of_equal_classes_is_refused():
    distill = DistillConfig(on_server=True, refine="kkr", kkr_peak=0.2)
    distill.check(6)
    with pytest.raises(ConfigError, match=r"distill.kkr_peak is 0.2; expected more than 1 / 5"):
        distill.check(5)
    DistillConfig(on_server=True, refine="skr", kkr_peak=0.2).check(5)


def test_each_side_may_have_its_own_temperature():
    student, teacher, label = draw(5)
    tensors = torch.tensor(student), torch.tensor(label), torch.tensor(teacher)
    distill = DistillConfig(3.0, on_server=True, client_temperature=1.5, server_temperature=7.0)
    plain = numpy_cross_entropy(student, label)
    assert float(client_loss(*tensors, distill)) == pytest.approx(plain + numpy_kl(teacher, student, 1.5))
    assert float(server_loss(*tensors, distill)) == pytest.approx(plain + numpy_kl(teacher, student, 7.0))
    one_for_both = DistillConfig(3.0, on_server=True, client_temperature=1.5)
    assert float(server_loss(*tensors, one_for_both)) == pytest.approx(plain + numpy_kl(teacher, student, 3.0))


def numpy_weighted_kl(teacher_logit, student_logit, temperature, weight):
    p, q = numpy_softmax(teacher_logit / temperature), numpy_softmax(student_logit / temperature)
    return temperature**2 * np.mean(np.sum(weight * p * np.log(p / q), axis=1))


def test_weights_count_each_classs_part_of_the_divergence_so_many_times():
    student, teacher, _ = draw(6)
    weight = np.random.default_rng(0).uniform(0, 2, student.shape)
    found = distil_loss(torch.tensor(student), torch.tensor(teacher), 3.0, torch.tensor(weight))
    assert float(found) == pytest.approx(numpy_weighted_kl(teacher, student, 3.0, weight))
    plain = distil_loss(torch.tensor(student), torch.tensor(teacher), 3.0)
    ones = distil_loss(torch.tensor(student), torch.tensor(teacher), 3.0, torch.ones(student.shape))
    assert float(ones) == pytest.approx(float(plain), rel=1e-12)


def numpy_kkr(logit, peak, softener):
    """Sample by sample, from the line through (1 / C, 1 / C) and (max p, peak)."""
    refined = []
    for p in numpy_softmax(logit / softener):
        uniform = 1 / len(p)
        q = np.array([uniform + (x - uniform) * (peak - uniform) / (p.max() - uniform) for x in p])
        if q.min() < 0:
            q = np.array([peak if c == p.argmax() else (1 - peak) / (len(p) - 1) for c in range(len(p))])
        refined.append(q)
    return np.array(refined)


def entropy(p):
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=1)


def numpy_skr(logit, share):
    """Sample by sample, from the best of many closely spaced s, refined between its neighbours."""
    refined = []
    for z in logit:
        low, high = -12.0, 12.0
        for _ in range(12):
            log_s = np.linspace(low, high, 101)
            p = numpy_softmax(z / np.exp(log_s)[:, None])
            nearest = np.abs(entropy(p) - share * np.log(len(z))).argmin()
            low, high = log_s[max(nearest - 1, 0)], log_s[min(nearest + 1, 100)]
        refined.append(p[nearest])
    return np.array(refined)


def test_kkr_by_hand():
    """Of 4 classes: p = (1/2, 1/4, 1/8, 1/8), peak 0.4: the distances from 1/4 shrink by 0.15 / 0.25."""
    logit = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()
    expected = torch.tensor([[0.4, 0.25, 0.175, 0.175]], dtype=torch.float64)
    torch.testing.assert_close(kkr(logit, 0.4, 1.0), expected)
    torch.testing.assert_close(kkr(logit * 0.1, 0.4, 0.1), expected)  # the softener divides the logits
    # A peak of 0.7 would put 1/8 at 0.25 - 0.125 * 0.45 / 0.25 = 0.025; one of 0.8, at -0.025: the others share 0.2.
    torch.testing.assert_close(kkr(logit, 0.7, 1.0)[0, 2:], torch.full((2,), 0.025, dtype=torch.float64))
    one_peak = torch.tensor([[0.8, 0.2 / 3, 0.2 / 3, 0.2 / 3]], dtype=torch.float64)
    torch.testing.assert_close(kkr(logit, 0.8, 1.0), one_peak)


@given(st.integers(0, 10**6), st.floats(0.05, 0.95), st.floats(0.05, 3), st.integers(1, 10), st.integers(2, 30))
def test_kkr_is_the_line_through_the_peak(seed, height, softener, batch, classes):
    logit, _, _ = draw(seed, batch, classes)
    peak = 1 / classes + height * (1 - 1 / classes)
    found = kkr(torch.tensor(logit), peak, softener).numpy()
    np.testing.assert_allclose(found, numpy_kkr(logit, peak, softener), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.max(axis=1), peak, rtol=1e-6)


@given(st.integers(0, 10**6), st.floats(0.05, 0.99), st.integers(1, 5), st.integers(2, 30))
def test_skr_finds_the_scale_at_which_every_sample_has_the_same_entropy(seed, share, batch, classes):
    logit, _, _ = draw(seed, batch, classes)
    two = np.sort(logit, axis=1)[:, -2:]
    # For nearly equal logits, skr ends at the nearest possible value, as documented.
    assume((np.diff(two, axis=1) > 2e-3 * np.ptp(logit, axis=1, keepdims=True)).all())
    found = skr(torch.tensor(logit), share).numpy()
    np.testing.assert_allclose(found, numpy_skr(logit, share), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(entropy(found), share * np.log(classes), rtol=1e-6)


def refined_by(name, logit):
    return kkr(logit, 0.6, 0.5) if name == "kkr" else skr(logit, 0.8)


SCALES = st.sampled_from([0.0, 1e-30, 1e-6, 1e-3, 1.0, 30.0, 1e4, 1e30])


@pytest.mark.parametrize("name", ["kkr", "skr"])
@given(seed=st.integers(0, 10**6), scale=SCALES, batch=st.integers(1, 10), classes=st.integers(2, 100))
def test_refined_knowledge_is_a_distribution_in_the_order_of_the_logits(name, seed, scale, batch, classes):
    """In float32, for logits from zero to absurdly large ones."""
    logit = (torch.from_numpy(draw(seed, batch, classes)[0]) * scale).float()
    found = refined_by(name, logit)
    assert bool(found.isfinite().all()) and float(found.min()) >= 0
    torch.testing.assert_close(found.sum(1), torch.ones(batch), rtol=0, atol=1e-3)
    in_order = found.gather(1, logit.argsort(dim=1, stable=True))
    assert bool((in_order.diff(dim=1) >= 0).all())


@pytest.mark.parametrize("name", ["kkr", "skr"])
def test_equal_logits_stay_equal_knowledge(name):
    torch.testing.assert_close(refined_by(name, torch.full((2, 10), 3.0)), torch.full((2, 10), 0.1))


def test_refined_logits_do_not_depend_on_confidence():
    """The purpose of the refinement: the same opinion, ten times as confident, teaches the server the same."""
    quiet = torch.from_numpy(draw(7)[0])
    torch.testing.assert_close(skr(quiet, 0.8), skr(10 * quiet, 0.8))
    loud = torch.tensor([[0.0, 1.0, 40.0], [0.0, 1.0, 4.0]], dtype=torch.float64)
    assert kkr(loud, 0.6, 0.5).amax(1).tolist() == pytest.approx([0.6, 0.6])


@pytest.mark.parametrize(("name", "reference"), [("kkr", numpy_kkr), ("skr", numpy_skr)])
def test_the_server_distils_from_refined_knowledge(name, reference):
    student, teacher, label = draw(8)
    distill = DistillConfig(2.0, 0.7, on_server=True, refine=name, kkr_peak=0.5, kkr_softener=0.3, skr_entropy=0.6)
    # kkr divides by the temperature first; skr does not need one, since it finds its own.
    p = reference(teacher / 2, 0.5, 0.3) if name == "kkr" else reference(teacher, 0.6)
    q = numpy_softmax(student / 2)
    expected = numpy_cross_entropy(student, label) + 0.7 * 4 * np.mean(np.sum(p * np.log(p / q), axis=1))
    tensors = torch.tensor(student), torch.tensor(label), torch.tensor(teacher)
    assert float(server_loss(*tensors, distill)) == pytest.approx(expected, rel=1e-5)
    unrefined = DistillConfig(2.0, 0.7, on_server=True)
    assert float(client_loss(*tensors, distill)) == float(client_loss(*tensors, unrefined))


@pytest.mark.parametrize("refine", ["none", "kkr", "skr"])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e6])
def test_the_gradient_of_the_servers_loss_is_finite_and_flows_to_the_server_alone(refine, scale):
    student, teacher, label = (torch.from_numpy(part) for part in draw(9))
    student, teacher = (scale * student).float().requires_grad_(), (scale * teacher).float().requires_grad_()
    distill = DistillConfig(on_server=True, refine=refine, kkr_peak=0.5, lka="balance")
    weight = torch.full_like(student, 1.1).detach()
    server_loss(student, label, teacher, distill, weight).backward()
    assert teacher.grad is None
    assert bool(student.grad.isfinite().all()) and float(student.grad.abs().max()) > 0


def test_without_the_options_there_are_no_weights():
    counts = torch.tensor([[3, 1], [0, 4]])
    assert fpkd_weight(counts[0], DistillConfig()) is None
    assert lka_weight(counts, DistillConfig(on_server=True)) is None


def test_fpkd_weights_by_hand():
    """3, 1 and 0 of 4 samples, scale 1/2: 1 + (1.5, 0.5, 0), which have the mean 5/3."""
    weight = fpkd_weight(torch.tensor([3, 1, 0]), DistillConfig(fpkd=True, fpkd_scale=0.5))
    assert weight.tolist() == pytest.approx([1.5, 0.9, 0.6])


def test_lka_weights_by_hand():
    """Client 0 has 3 and 1 of two classes, client 1 has 0 and 4; all have 3 and 5 of 8."""
    counts = torch.tensor([[3, 1], [0, 4]])
    balance = lka_weight(counts, DistillConfig(on_server=True, lka="balance", lka_scale=2.0))
    expected = [[1 + (0.375 - 0.75) / 2, 1 + (0.625 - 0.25) / 2], [1 + 0.375 / 2, 1 + (0.625 - 1) / 2]]
    torch.testing.assert_close(balance, torch.tensor(expected))
    similarity = lka_weight(counts, DistillConfig(on_server=True, lka="similarity"))
    cosine = [(3 * 3 + 5 * 1) / (34**0.5 * 10**0.5), 5 / 34**0.5]
    torch.testing.assert_close(similarity, torch.tensor([[(1 + c) / 2] * 2 for c in cosine]))


@pytest.mark.parametrize("lka", ["balance", "similarity"])
def test_clients_of_the_same_mix_and_uniform_priors_are_plain_distillation(lka):
    student, teacher, label = (torch.from_numpy(part) for part in draw(10))
    distill = DistillConfig(on_server=True, lka=lka, fpkd=True)
    alike = torch.tensor([[2, 4, 0, 6, 2], [1, 2, 0, 3, 1]])
    weight = lka_weight(alike, distill)[torch.tensor([0, 1, 1, 0, 0, 1, 1])]
    found = server_loss(student, label, teacher, distill, weight)
    assert float(found) == pytest.approx(float(server_loss(student, label, teacher, distill)), rel=1e-6)
    found = client_loss(student, label, teacher, distill, fpkd_weight(torch.full((5,), 9), distill))
    assert float(found) == pytest.approx(float(client_loss(student, label, teacher, distill)), rel=1e-6)


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(2, 30), st.floats(1, 50), st.floats(0.01, 50))
def test_weights_are_never_negative_and_have_mean_one_over_classes(seed, clients, classes, u, t):
    counts = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, (clients, classes)) * 7)
    counts[:, 0] += 1
    balance = lka_weight(counts, DistillConfig(on_server=True, lka="balance", lka_scale=u))
    fpkd = fpkd_weight(counts[0], DistillConfig(fpkd=True, fpkd_scale=t))
    for weight in (*balance, fpkd):
        assert float(weight.min()) >= -1e-6
        assert float(weight.mean()) == pytest.approx(1, abs=1e-5)
    similarity = lka_weight(counts, DistillConfig(on_server=True, lka="similarity"))
    assert float(similarity.min()) >= 0.5 - 1e-6 and float(similarity.max()) <= 1 + 1e-6


def test_a_client_without_arrived_samples_has_finite_weights():
    counts = torch.tensor([[0, 0], [1, 3]])
    for lka in ("balance", "similarity"):
        assert bool(lka_weight(counts, DistillConfig(on_server=True, lka=lka)).isfinite().all())


def test_with_fpkd_a_client_learns_its_common_classes_more_exactly():
    """The minimum of the weighted divergence is the teacher's distribution times the weights, normalised."""
    teacher = torch.tensor([[1.0, 0.5, -1.0]], dtype=torch.float64)
    weight = fpkd_weight(torch.tensor([8, 1, 1]), DistillConfig(fpkd=True, fpkd_scale=0.5)).double()
    student = torch.zeros_like(teacher).requires_grad_()
    optimizer = torch.optim.SGD([student], 0.5)
    for _ in range(2000):
        optimizer.zero_grad()
        distil_loss(student, teacher, 1.0, weight).backward()
        optimizer.step()
    expected = teacher.softmax(1) * weight
    torch.testing.assert_close(student.softmax(1), expected / expected.sum())

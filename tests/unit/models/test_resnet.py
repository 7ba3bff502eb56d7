import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gkt_mpi.models.networks import EDGE_FAMILIES, build_edge_model, build_server_model, build_whole_model
from gkt_mpi.seeding import torch_generator

CPU = torch.device("cpu")


def edge(name="resnet8", classes=10, channels=3, seed=0, norm="batch"):
    return build_edge_model(name, (32, 32, channels), classes, torch_generator(seed, "test"), CPU, norm)


def server(name="resnet56", classes=10, seed=0, norm="batch"):
    return build_server_model(name, (32, 32, 16), classes, torch_generator(seed, "test"), CPU, norm)


def whole(name):
    return build_whole_model(name, (32, 32, 3), 10, torch_generator(0, "w"), CPU)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def bottleneck_parameters(in_channels, width, projected):
    """Counted by hand: three convolutions without bias, a scale and a shift for each of their channels."""
    own = in_channels * width + 9 * width * width + width * 4 * width + 2 * (width + width + 4 * width)
    return own + (in_channels * 4 * width + 2 * 4 * width if projected else 0)


def test_parameter_counts_are_those_of_the_paper():
    stem = 3 * 9 * 16 + 2 * 16
    assert parameters(edge().stem) == stem == 464
    assert parameters(edge()) == 10_586
    assert parameters(server("resnet11")) + stem == 127_642
    assert parameters(server("resnet56")) + stem == 591_322
    assert parameters(server("resnet110")) + stem == 1_147_738


@pytest.mark.parametrize(("name", "depth"), [("resnet11", 1), ("resnet56", 6), ("resnet110", 12)])
def test_parameter_counts_follow_from_the_architecture(name, depth):
    expected, in_channels = 256 * 10 + 10, 16
    for width in (16, 32, 64):
        for position in range(depth):
            expected += bottleneck_parameters(in_channels, width, projected=position == 0)
            in_channels = 4 * width
    assert parameters(server(name)) == expected


def multiply_accumulates(*models):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        x = torch.zeros(1, 3, 32, 32)
        for model in models:
            x = model(x)
    return counter.get_total_flops() / 2


def test_multiply_accumulates_of_the_edge_model_are_those_counted_by_hand():
    stem, pixels = 3 * 9 * 16, 32 * 32
    first = 16 * 16 + 9 * 16 * 16 + 16 * 64 + 16 * 64  # the last is the shortcut
    second = 64 * 16 + 9 * 16 * 16 + 16 * 64
    convolutions = (stem + first + second) * pixels
    assert convolutions == 9_617_408
    assert multiply_accumulates(lambda x: edge().eval()(x)[1]) == convolutions + 64 * 10


def test_multiply_accumulates_of_the_whole_models_are_those_of_the_paper():
    assert multiply_accumulates(edge().stem, server("resnet56")) == pytest.approx(87.21e6, rel=1e-4)
    assert multiply_accumulates(edge().stem, server("resnet110")) == pytest.approx(167.43e6, rel=1e-4)


@pytest.mark.parametrize("name", ["resnet4", "resnet6", "resnet8"])
@pytest.mark.parametrize("classes", [10, 100])
def test_an_edge_model_gives_feature_and_logits(name, classes):
    feature, logit = edge(name, classes)(torch.rand(2, 3, 32, 32))
    assert feature.shape == (2, 16, 32, 32)
    assert feature.min() >= 0
    assert logit.shape == (2, classes)
    assert server(classes=classes)(feature).shape == (2, classes)


@pytest.mark.parametrize("name", ["resnet4", "resnet6", "resnet8", "resnet11", "resnet56", "resnet110"])
def test_the_number_in_a_models_name_counts_its_weighted_layers(name):
    model = edge(name) if name in EDGE_FAMILIES else whole(name)
    weighted = (torch.nn.Conv2d, torch.nn.Linear)
    counted = [m for key, m in model.named_modules() if isinstance(m, weighted) and "shortcut" not in key]
    assert len(counted) == int(name.removeprefix("resnet"))


def test_a_bottleneck_computes_what_its_formula_says():
    """Against the same block written with functions, in float64."""
    block = edge().head[0].double().train()
    x = torch.randn(5, 16, 6, 6, generator=torch_generator(0, "x"), dtype=torch.float64)

    def norm(y, layer):
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), unbiased=False, keepdim=True)
        return (y - mean) / (var + layer.eps).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]

    f = torch.nn.functional
    y = norm(f.conv2d(x, block.conv1.weight), block.norm1).clamp(min=0)
    y = norm(f.conv2d(y, block.conv2.weight, padding=1), block.norm2).clamp(min=0)
    y = norm(f.conv2d(y, block.conv3.weight), block.norm3)
    expected = (y + norm(f.conv2d(x, block.shortcut[0].weight), block.shortcut[1])).clamp(min=0)
    torch.testing.assert_close(block(x), expected)


def test_initial_weights_depend_on_the_generator_alone():
    torch.manual_seed(1)
    first = server(seed=3).state_dict()
    torch.manual_seed(2)
    again, other = server(seed=3).state_dict(), server(seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["layers.0.conv1.weight"], other["layers.0.conv1.weight"])


def test_initial_convolutions_have_the_variance_of_he_et_al():
    weight = server().layers[13].conv2.weight  # 64 to 64 channels would be later; this is 32 to 32
    fan_out = weight.shape[0] * 9
    assert float(weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_a_state_holds_float32_alone():
    for model in (edge(), server()):
        assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def test_group_norm_has_the_parameters_of_batch_norm_and_no_buffers():
    stem = 3 * 9 * 16 + 2 * 16
    head = bottleneck_parameters(16, 16, projected=True) + bottleneck_parameters(64, 16, projected=False) + 64 * 10 + 10
    assert parameters(edge(norm="group")) == stem + head == 10_586
    assert parameters(edge("resnet4", norm="group")) == stem + 2 * (9 * 16 * 16 + 2 * 16) + 16 * 10 + 10
    assert parameters(server(norm="group")) == 591_322 - 464
    for build in (edge, server):
        assert list(build(norm="group").buffers()) == []
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in build(norm="group").modules())
        shared = zip(build().parameters(), build(norm="group").parameters(), strict=True)
        assert all(torch.equal(batch, group) for batch, group in shared)  # the same initial values


@pytest.mark.parametrize("name", ["resnet11", "resnet56", "resnet110"])
def test_a_group_has_8_channels_and_every_layer_at_least_2_groups(name):
    layers = [m for m in server(name, norm="group").modules() if isinstance(m, torch.nn.GroupNorm)]
    found = {layer.num_channels: layer.num_groups for layer in layers}
    assert found == {16: 2, 32: 4, 64: 8, 128: 16, 256: 32}
    assert all(layer.affine for layer in layers)


def test_group_norm_computes_what_its_formula_says():
    """Mean and variance over 8 channels and all pixels of one image, written with loops, in float64."""
    layer = edge(norm="group").stem[1].double()
    generator = torch_generator(0, "x")
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5, generator=generator)
        layer.bias.uniform_(-1, 1, generator=generator)
    x = torch.randn(3, 16, 4, 4, generator=generator, dtype=torch.float64)
    expected = torch.empty_like(x)
    for image in range(3):
        for first in (0, 8):
            part = x[image, first : first + 8]
            expected[image, first : first + 8] = (part - part.mean()) / (part.var(unbiased=False) + 1e-5).sqrt()
    expected = expected * layer.weight[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_only_group_norm_computes_an_image_independently_of_its_batch(norm):
    generator = torch_generator(0, "x")
    image, others = (torch.rand(n, 3, 8, 8, generator=generator) for n in (1, 4))
    edge_model, server_model = edge(norm=norm).train(), server(norm=norm).train()
    with torch.no_grad():
        found = []
        for rest in (others, others * 5):
            feature, logit = edge_model(torch.cat([image, rest]))
            found.append(torch.cat([logit[:1], server_model(feature)[:1]]))
    if norm == "group":
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    else:
        assert (found[0] - found[1]).abs().min() > 1e-3


def test_a_folded_model_with_group_norm_gives_the_same_logits():
    """The same operations, hence the same bits; the folding of batch norm is tested in test_compute.py."""
    model = server(norm="group")
    feature = torch.rand(3, 16, 8, 8, generator=torch_generator(0, "x"))
    with torch.no_grad():
        assert torch.equal(model.folded()(feature), model.eval()(feature))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_both_norms_train_in_bfloat16(norm):
    edge_model, server_model = edge(norm=norm).train(), server(norm=norm).train()
    edge_model.precision = server_model.precision = "bfloat16"
    feature, logit = edge_model(torch.rand(4, 3, 8, 8, generator=torch_generator(0, "x")))
    (logit.square().mean() + server_model(feature).square().mean()).backward()
    gradients = [p.grad for model in (edge_model, server_model) for p in model.parameters()]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert edge_model.stem[0].weight.grad.abs().max() > 0

"""torchvision's networks as servers: the same computation as the original, and pretrained weights of it."""

import pytest
import torch
from safetensors.torch import save_file

from gkt_mpi.errors import ConfigError
from gkt_mpi.models.networks import SERVER_FAMILIES, build_server_model
from gkt_mpi.models.pretrained import load_pretrained
from gkt_mpi.models.trial import try_server
from gkt_mpi.seeding import torch_generator
from gkt_mpi.torchvision_import import import_torchvision

CPU = torch.device("cpu")
# name, cut, the original's layers up to the cut, and the channels after them (He et al. 2016; Howard et al. 2019; Tan
# and Le 2019)
CASES = [
    ("resnet18", None, ["conv1", "bn1", "relu", "maxpool"], 64),
    ("resnet18", "layer2", ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2"], 128),
    ("resnet50", "layer3", ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"], 1024),
    ("mobilenet_v3_small", None, ["features.0"], 16),
    ("mobilenet_v3_small", "features.3", ["features.0", "features.1", "features.2", "features.3"], 24),
    ("efficientnet_b0", "features.6", [f"features.{number}" for number in range(7)], 192),
]


def server(name, cut=None, classes=10, seed=0):
    return build_server_model(name, (8, 8, 5), classes, torch_generator(seed, "server"), CPU, "batch", cut)


def original(name, classes=1000):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return getattr(import_torchvision("models"), name)(weights=None, num_classes=classes)


@pytest.mark.parametrize(("name", "cut", "left_out", "channels"), CASES)
def test_after_the_adapter_a_cut_network_computes_what_the_pretrained_original_does(
    name, cut, left_out, channels, tmp_path
):
    whole, cut_one = original(name, 10).eval(), server(name, cut).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    load_pretrained(cut_one.layers, name, str(tmp_path / "weights.pth"))
    adapter, *rest = cut_one.layers.children()
    assert adapter[0].in_channels == 5 and adapter[0].out_channels == channels
    image = torch.rand(2, 3, 64, 64, generator=torch_generator(0, "x"))
    with torch.no_grad():
        for part in left_out:
            image = whole.get_submodule(part)(image)
        assert image.shape[1] == channels
        found = torch.nn.Sequential(*rest)(image)
        for part in left_out:  # the original from there on: with the layers before it passing everything
            parent, _, child = part.rpartition(".")
            setattr(whole.get_submodule(parent), child, torch.nn.Identity())
        torch.testing.assert_close(found, whole(image))


def test_the_classifier_keeps_its_initial_values_for_another_number_of_classes(tmp_path):
    whole, mine, untouched = original("resnet18"), server("resnet18"), server("resnet18")
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    load_pretrained(mine.layers, "resnet18", str(tmp_path / "weights.safetensors"))
    assert torch.equal(mine.layers.fc.weight, untouched.layers.fc.weight)
    assert torch.equal(mine.layers.adapter[0].weight, untouched.layers.adapter[0].weight)
    assert torch.equal(mine.layers.layer4[1].conv2.weight, whole.layer4[1].conv2.weight)
    assert int(mine.layers.layer1[0].bn1.num_batches_tracked) == 0


def test_weights_of_another_network_are_refused_in_one_line(tmp_path):
    path = tmp_path / "weights.pth"
    state = original("resnet18").state_dict()
    for change, part in (
        (lambda s: s.pop("layer4.0.conv1.weight"), "1 missing (layer4.0.conv1.weight)"),
        (lambda s: s.update({"head.weight": torch.zeros(1)}), "1 unexpected (head.weight)"),
        (lambda s: s.update({"layer4.0.bn1.bias": torch.zeros(3)}), "1 of another shape (layer4.0.bn1.bias)"),
    ):
        changed = dict(state)
        change(changed)
        torch.save(changed, path)
        with pytest.raises(ConfigError) as refused:
            load_pretrained(server("resnet18").layers, "resnet18", str(path))
        assert part in str(refused.value) and "\n" not in str(refused.value)
    torch.save({"state_dict": state, "epoch": 3}, path)
    with pytest.raises(ConfigError, match="which is no state_dict"):
        load_pretrained(server("resnet18").layers, "resnet18", str(path))
    path.write_bytes(b"not weights")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_pretrained(server("resnet18").layers, "resnet18", str(path))


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first, before = server("mobilenet_v3_small").state_dict(), torch.get_rng_state()
    torch.manual_seed(2)
    again, other = server("mobilenet_v3_small").state_dict(), server("mobilenet_v3_small", seed=1).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["layers.features.1.block.0.0.weight"], other["layers.features.1.block.0.0.weight"])
    torch.manual_seed(1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v3_small", "efficientnet_b0"])
def test_every_cut_of_every_network_trains(name):
    """It passes the trial before a run, and learns four random features by heart."""
    feature = torch.rand(4, 24, 32, 32, generator=torch.Generator().manual_seed(0))
    for norm, cut in (("batch", None), ("group", None), *(("batch", cut) for cut in SERVER_FAMILIES[name].cuts)):
        try_server(name, (32, 32, 24), 10, norm, cut, "an edge")
        generator, cpu = torch.Generator().manual_seed(0), torch.device("cpu")
        model = build_server_model(name, (32, 32, 24), 10, generator, cpu, norm, cut).train()
        optimizer, losses = torch.optim.Adam(model.parameters(), 3e-4), []
        for _ in range(15):
            losses.append(torch.nn.functional.cross_entropy(model(feature), torch.arange(4)))
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        assert min(losses) < 0.8 * losses[0], (norm, cut)


def test_a_cut_that_a_network_lacks_is_refused_with_those_it_has(tiny):
    with pytest.raises(ConfigError, match="server.cut is 'layer4'; expected layer1 or layer2 or layer3, or null"):
        tiny(server__model="resnet18", server__cut="layer4")
    with pytest.raises(ConfigError, match="server.cut is 'layer1'; expected null: resnet11 has only one"):
        tiny(server__cut="layer1")

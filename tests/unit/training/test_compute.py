import pytest
import torch

from gkt_mpi.errors import Interrupted
from gkt_mpi.models.networks import build_edge_model, build_server_model
from gkt_mpi.seeding import torch_generator
from gkt_mpi.training import compute
from gkt_mpi.training.compute import Compute, ComputeConfig, choose
from tests.conftest import figures, run_in_threads

CPU = torch.device("cpu")


@pytest.fixture
def model():
    return build_server_model("resnet11", (8, 8, 16), 10, torch_generator(0, "server"), CPU)


@pytest.fixture
def feature():
    return torch.rand(4, 16, 8, 8, generator=torch_generator(0, "feature"))


def decide(model, feature, num_steps, **fields):
    chosen, network = choose(ComputeConfig(**fields), model, feature, num_steps)
    return chosen, network


def slow_down(monkeypatch, seconds):
    """Make every step take `seconds(precision, compiled)` seconds, without a clock."""

    def step(self, network):
        return seconds(self.model.precision, network is not self.model)

    monkeypatch.setattr(compute._Trial, "step", step)


@pytest.mark.parametrize(("instructions", "precision"), [(True, "bfloat16"), (False, "float32")])
@pytest.mark.parametrize("num_steps", [10, 1000])
@pytest.mark.parametrize("speed_up", [0.2, 1.82])
def test_the_device_decides_and_no_clock(
    monkeypatch, model, feature, instructions, precision, num_steps, speed_up, said
):
    slow_down(monkeypatch, lambda name, compiled: 1.0 if name == "float32" else 1.0 / speed_up)
    monkeypatch.setattr(compute, "has_bfloat16", lambda device: instructions)
    chosen, _ = decide(model, feature, num_steps)
    assert chosen == Compute(precision, compile=False)
    assert model.precision == precision
    assert said.messages[0].startswith(
        f"precision: {precision} (this processor has {'' if instructions else 'no '}instructions"
    )
    measured = f"a step takes {1 / speed_up:.2f} of one in float32 just now"
    assert (measured in said.text) == (instructions and num_steps == 1000)


@pytest.mark.parametrize(("flags", "expected"), [("fpu avx512_bf16 x", True), ("fpu avx512f bf16x", False)])
def test_a_processors_instructions_are_read_from_its_flags(monkeypatch, tmp_path, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(compute, "Path", lambda path: tmp_path / "cpuinfo")
    assert compute.has_bfloat16(CPU) is expected


@pytest.mark.parametrize(("compiled_s", "kept"), [(0.5, True), (1.01, False)])
def test_auto_compiles_on_a_gpu_in_long_runs_and_keeps_it_if_it_pays(
    monkeypatch, model, feature, compiled_s, kept, said
):
    assert decide(model, feature, 10**9, precision="float32")[0].compile is False  # a processor
    monkeypatch.setattr(compute, "kind_of", lambda device: "GPU")
    slow_down(monkeypatch, lambda name, compiled: compiled_s if compiled else 1.0)
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: module.forward)
    assert decide(model, feature, 3599, precision="float32")[0].compile is False  # less than an hour of steps
    chosen, _ = decide(model, feature, 100_000, precision="float32")
    assert chosen.compile is kept
    assert ("compile: yes" if kept else "compile: no; it took 0 s and would save -1000 s") in said.text


def test_without_a_compiler_the_run_continues(monkeypatch, model, feature, said):
    def fail(module, dynamic):
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", fail)
    chosen, network = decide(model, feature, 1000, precision="float32", compile=True)
    assert chosen == Compute("float32", compile=False)
    assert said.messages[-1].endswith("compile: no; torch.compile fails here: no C++ compiler")
    assert network(feature).shape == (4, 10)


def test_a_signal_while_the_compiler_works_ends_the_run(monkeypatch, model, feature):
    def be_warned(module, dynamic):
        raise Interrupted("interrupted by SIGUSR1")

    monkeypatch.setattr(torch, "compile", be_warned)
    with pytest.raises(Interrupted):
        decide(model, feature, 1000, precision="float32", compile=True)


def test_only_full_batches_go_through_the_compiled_model(monkeypatch, model, feature):
    sizes = []

    def compiled(batch):
        sizes.append(len(batch))
        return model(batch)

    monkeypatch.setattr(torch, "compile", lambda module, dynamic: compiled)
    _, network = decide(model, feature, 10, precision="float32", compile=True)
    model.train()
    network(feature)
    network(feature[:3])
    assert sizes == [4, 4]  # the trial's, and the full one


def test_measuring_does_not_change_the_model(monkeypatch, model, feature, said):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr(compute, "has_bfloat16", lambda device: True)
    _, _ = decide(model, feature, 1000)
    assert "of one in float32" in said.text
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("side", ["edge", "server"])
def test_bfloat16_computes_the_same_up_to_its_precision_and_returns_float32(side, model, feature):
    if side == "edge":
        model = build_edge_model("resnet8", (8, 8, 3), 10, torch_generator(0, "edge"), CPU)
        feature = feature[:, :3]
    exact, rough = {}, {}
    for precision, found in (("float32", exact), ("bfloat16", rough)):
        model.precision = precision
        model.train()
        outputs = model(feature)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        assert all(output.dtype == torch.float32 for output in outputs)
        loss = outputs[-1].square().mean()
        found["logit"] = outputs[-1].detach()
        found["gradient"] = torch.autograd.grad(loss, list(model.parameters()))[0]
        assert found["gradient"].dtype == torch.float32
    assert not torch.equal(exact["logit"], rough["logit"])
    assert torch.nn.functional.cosine_similarity(exact["logit"].flatten(), rough["logit"].flatten(), 0) > 0.9


def test_a_folded_model_gives_the_logits_of_evaluation_mode(model, feature):
    model.train()
    with torch.no_grad():
        for step in range(3):
            model(feature * step + 0.1)  # statistics different from a new model's
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=torch_generator(1, "weight"))
                module.bias.uniform_(-0.5, 0.5, generator=torch_generator(1, "bias"))
        expected = model.eval()(feature)
        folded = model.folded()
        torch.testing.assert_close(folded(feature), expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


def test_a_resumed_run_keeps_its_precision(tiny, monkeypatch):
    """The machine on which the run began decides, whatever the next one supports."""
    monkeypatch.setattr(compute, "has_bfloat16", lambda device: True)
    first = run_in_threads(tiny(rounds=1, compute__precision="auto", name="cut"), 2)
    monkeypatch.setattr(compute, "has_bfloat16", lambda device: False)
    whole = run_in_threads(tiny(rounds=2, compute__precision="auto", name="cut"), 3)
    half = run_in_threads(tiny(rounds=2, compute__precision="bfloat16", name="half"), 2)
    single = run_in_threads(tiny(rounds=2, compute__precision="float32", name="single"), 2)
    assert figures(first) == figures(whole)[:1]
    assert figures(whole) == figures(half) != figures(single)

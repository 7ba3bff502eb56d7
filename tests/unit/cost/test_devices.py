"""Device profiles: packaged ones, a user's own, and invalid ones."""

import pytest
import yaml
from jsonargparse import ArgumentParser

from gkt_mpi.cost.devices import DevicesConfig, load_devices, load_profile, packaged_profiles
from gkt_mpi.errors import ConfigError
from tests.conftest import ROOT

GOOD = {"flop_s": 2e9, "uplink_bit_s": 1e6, "downlink_bit_s": 3e6, "availability": 0.25}


def written(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def test_every_packaged_profile_loads_and_names_its_sources():
    folder = ROOT / "gkt_mpi/profiles"
    assert set(packaged_profiles()) == {path.stem for path in folder.iterdir()}
    for name in packaged_profiles():
        profile = load_profile(name, "devices.edge")
        assert profile.name == name
        comments = [line for line in (folder / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
        assert "ASSUMPTION" in " ".join(comments) and len(comments) >= 4


def test_a_better_device_is_not_slower():
    for worse, better in (("phone_old", "phone"), ("phone", "phone_new"), ("raspberry_pi", "jetson")):
        one, other = load_profile(worse, "x"), load_profile(better, "x")
        for name in ("flop_s", "uplink_bit_s", "downlink_bit_s", "availability"):
            assert getattr(one, name) <= getattr(other, name)


def test_the_figures_are_those_of_the_file():
    phone = load_devices(DevicesConfig()).of(5)
    assert (phone.name, phone.flop_s, phone.uplink_bit_s, phone.downlink_bit_s, phone.availability) == (
        *("phone", 20e9, 11.22e6, 35.96e6),
        0.33,
    )


def test_a_users_own_profile_is_a_path(tmp_path):
    profile = load_profile(written(tmp_path, GOOD), "devices.edge")
    assert (profile.name, profile.flop_s, profile.availability) == ("mine", 2e9, 0.25)


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    text = "flop_s: 2e9\nuplink_bit_s: 1_000_000\ndownlink_bit_s: 3E6\navailability: 1\n"
    profile = load_profile(written(tmp_path, text), "devices.edge")
    assert (profile.flop_s, profile.uplink_bit_s, profile.downlink_bit_s, profile.availability) == (2e9, 1e6, 3e6, 1.0)


def test_several_profiles_are_assigned_in_turn(tmp_path):
    devices = load_devices(DevicesConfig(edge=["phone", written(tmp_path, GOOD), "laptop"], server="jetson"))
    assert [devices.of(client).name for client in range(5)] == ["phone", "mine", "laptop", "phone", "mine"]
    assert devices.server.name == "jetson"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD | {"flop_s": 0}, "flop_s of mine is 0.0; expected a number above 0"),
        (GOOD | {"uplink_bit_s": float("inf")}, "uplink_bit_s of mine is inf"),
        (GOOD | {"downlink_bit_s": float("nan")}, "downlink_bit_s of mine is nan"),
        (GOOD | {"availability": 1.5}, "availability of mine is 1.5; expected above 0 and at most 1"),
        (GOOD | {"availability": 0}, "availability of mine is 0.0"),
        (GOOD | {"flop_s": "fast"}, "'fast'; expected a number"),
        (GOOD | {"flop_s": True}, "True; expected a number"),
        (GOOD | {"flop_s": None}, "None; expected a number"),
        (GOOD | {"flop_s": [1]}, r"\[1\]; expected a number"),
        (GOOD | {"uplink": 1}, "expected availability, downlink_bit_s, flop_s, uplink_bit_s"),
        ({"flop_s": 1}, "holds flop_s; expected"),
        ("", "holds None; expected"),
        ("- 1\n- 2\n", r"holds \[1, 2\]; expected"),
        ("flop_s: [", "cannot be read"),
    ],
)
def test_an_invalid_profile_is_refused_by_field_and_file(content, message, tmp_path):
    path = written(tmp_path, content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_devices(DevicesConfig(edge=path))
    assert "devices.edge" in str(caught.value) and "mine" in str(caught.value)


def test_what_is_not_text_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="devices.server: .*mine.yaml cannot be read"):
        load_devices(DevicesConfig(server=str(path)))


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"devices.edge is 'fone'; expected one of jetson, .*phone.*a YAML file"):
        load_devices(DevicesConfig(edge=["phone", "fone"]))
    with pytest.raises(ConfigError, match=r"devices.server is '/'; expected one of"):
        load_devices(DevicesConfig(server="/"))


@pytest.mark.parametrize("edge", ["", []])
def test_no_profile_is_refused(edge):
    with pytest.raises(ConfigError, match="devices.edge is .*expected a profile, or a list of at least one"):
        DevicesConfig(edge=edge)


@pytest.mark.parametrize(
    ("argument", "edge"),
    [("phone_new", "phone_new"), ("[phone, jetson]", ["phone", "jetson"]), ('["phone"]', ["phone"])],
)
def test_the_command_line_takes_one_profile_or_a_list(argument, edge):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DevicesConfig, "devices")
    made = parser.instantiate(parser.parse_args([f"--devices.edge={argument}", "--devices.server", "laptop"])).devices
    assert (made.edge, made.server) == (edge, "laptop")


def test_a_device_may_be_away_for_a_while_or_for_good(tmp_path):
    profile = load_profile(written(tmp_path, "away: [[3, 7.5], [1e2, .inf]]\n" + yaml.safe_dump(GOOD)), "devices.edge")
    assert profile.away == ((3.0, 7.5), (100.0, float("inf"))) and profile.leaves_for_good
    assert not load_profile(written(tmp_path, GOOD), "devices.edge").away
    devices = load_devices(DevicesConfig(edge=["phone", "phone_silent", "phone_leaving"]))
    assert devices.leaving(8) == [1, 4, 7]


@pytest.mark.parametrize(
    "away", ["[3, 7]", "[[7, 3]]", "[[3, 7], [5, 9]]", "[[-1, 2]]", "3", "[[a, b]]", "[[.nan, 3]]"]
)
def test_impossible_times_away_are_refused(tmp_path, away):
    path = written(tmp_path, f"away: {away}\n" + yaml.safe_dump(GOOD))
    with pytest.raises(ConfigError, match="devices.edge: away of "):
        load_profile(path, "devices.edge")


def test_the_server_is_never_away():
    with pytest.raises(ConfigError, match="devices.server is 'phone_leaving'; expected a profile without away"):
        load_devices(DevicesConfig(server="phone_leaving"))

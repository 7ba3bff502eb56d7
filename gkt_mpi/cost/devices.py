"""Device profiles of a real federation, in YAML: packaged (profiles/) or a user's own."""

import math
from dataclasses import dataclass, fields
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import pairwise
from pathlib import Path

import yaml

from gkt_mpi.errors import ConfigError, expand, require


@dataclass(frozen=True)
class DevicesConfig:
    """The devices on which `virtual_s` is computed; of training only fedgkt_async's order depends on them."""

    edge: list[str] | str = "phone"
    """Profile of the clients' devices, or several that are assigned to the clients in turn: a name in gkt_mpi/profiles
    (phone_old, phone, phone_new, raspberry_pi, jetson, laptop, server_gpu; the stragglers phone_slow, phone_leaving and
    phone_silent) or the path of a YAML file."""
    server: str = "server_gpu"
    """Profile of the server, as for devices.edge."""

    def __post_init__(self) -> None:
        require(len(self.edge) > 0, "devices.edge", self.edge, "a profile, or a list of at least one")


@dataclass(frozen=True)
class DeviceProfile:
    """The profile of a device."""

    name: str
    flop_s: float
    """Operations per second that training sustains (counting convolutions and matrix products only)."""
    uplink_bit_s: float
    downlink_bit_s: float
    availability: float
    """Share of time that the device is available, above 0 and at most 1."""
    away: tuple[tuple[float, float], ...] = ()
    """Times at which the device is unavailable: seconds of the run (from, to), ascending; to infinity: for good."""

    def __post_init__(self) -> None:
        for name in ("flop_s", "uplink_bit_s", "downlink_bit_s"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} of {self.name}", value, "a number above 0")
        require(0 < self.availability <= 1, f"availability of {self.name}", self.availability, "above 0 and at most 1")
        times = [time for span in self.away for time in span]
        is_ascending = all(a < b for a, b in pairwise([-1.0, *times]))
        require(is_ascending, f"away of {self.name}", self.away, "pairs of seconds from 0 on, ascending")

    @property
    def leaves_for_good(self) -> bool:
        """Whether the device leaves at some time and never returns."""
        return bool(self.away) and self.away[-1][1] == math.inf


@dataclass(frozen=True)
class Devices:
    """The devices of a run."""

    edge: tuple[DeviceProfile, ...]
    server: DeviceProfile

    def leaving(self, num_clients: int) -> list[int]:
        """Return the clients that leave for good, or never answer at all."""
        return [client for client in range(num_clients) if self.of(client).leaves_for_good]

    def of(self, client: int) -> DeviceProfile:
        """Return the device of a client: the profiles are assigned in turn."""
        return self.edge[client % len(self.edge)]


def packaged_profiles() -> tuple[str, ...]:
    """Return the names of the packaged profiles, sorted."""
    return tuple(sorted(_packaged()))


def load_devices(config: DevicesConfig) -> Devices:
    """Return the configured devices. Raises `ConfigError` naming the field of an unusable profile."""
    names = [config.edge] if isinstance(config.edge, str) else config.edge
    server = load_profile(config.server, "devices.server")
    require(
        not server.away,
        "devices.server",
        config.server,
        "a profile without away: the run cannot continue without its server",
    )
    return Devices(tuple(load_profile(name, "devices.edge") for name in names), server)


def load_profile(name: str, field: str) -> DeviceProfile:
    """Return a profile by its packaged name, or from the YAML file at this path.

    Raises `ConfigError` naming `field`, the file and the problem.
    """
    packaged = _packaged()
    path = packaged[name] if name in packaged else expand(name, field)
    require(path.is_file(), field, name, f"one of {', '.join(sorted(packaged))}, or the path of a YAML file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{field}: {name} cannot be read: {error}") from error
    wanted = {f.name for f in fields(DeviceProfile)} - {"name", "away"}
    if not isinstance(content, dict) or content.keys() - {"away"} != wanted:
        found = ", ".join(map(str, content)) if isinstance(content, dict) else repr(content)
        raise ConfigError(
            f"{field}: {name} holds {found or 'nothing'}; expected {', '.join(sorted(wanted))}, and optionally away"
        )
    try:
        away = _spans(f"away of {name}", content.pop("away", []))
        numbers = {key: _number(f"{key} of {name}", value) for key, value in content.items()}
        return DeviceProfile(name if name in packaged else Path(name).stem, away=away, **numbers)
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from error


def _packaged() -> dict[str, Traversable]:
    folder = resources.files("gkt_mpi") / "profiles"
    return {path.name.removesuffix(".yaml"): path for path in folder.iterdir() if path.name.endswith(".yaml")}


def _spans(field: str, value: object) -> tuple[tuple[float, float], ...]:
    is_pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    require(is_pairs, field, value, "a list of pairs such as [[60, 120], [600, .inf]]")
    return tuple((_number(field, a), _number(field, b)) for a, b in value)  # type: ignore[attr-defined]


def _number(field: str, value: object) -> float:
    """Return a number. YAML reads 1e9, without point and sign, as text; here it is a number."""
    require(isinstance(value, int | float | str) and not isinstance(value, bool), field, value, "a number")
    try:
        return float(value)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(f"{field} is {value!r}; expected a number") from error

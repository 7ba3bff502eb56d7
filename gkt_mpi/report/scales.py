"""The horizontal axes of accuracy: rounds, bytes, operations and time, logged figures summed up to each round."""

from dataclasses import dataclass

from gkt_mpi.report.run_folder import Run
from gkt_mpi.units import unit_of


@dataclass(frozen=True)
class Scale:
    """A horizontal axis: the sum of the figures `keys` up to each round, or the round itself if there are none."""

    name: str
    caption: str
    keys: tuple[str, ...]
    label: str
    unit: str = ""

    def position(self, run: Run) -> list[float] | None:
        """Return the position of each round of a run, in `unit`; None if its logs lack it."""
        if not self.keys:
            return [float(record["round"]) for record in run.records]
        return run.cumulated(*self.keys)

    def axis(self, largest: float) -> tuple[float, str]:
        """Return the divisor of positions up to `largest`, and the axis label with the resulting unit."""
        if not self.unit:
            return 1.0, self.label
        size, unit = unit_of(largest, self.unit)
        return size, f"{self.label}, {unit}"


BY_ROUND = Scale("accuracy_by_round", "by round", (), "round")
BY_BYTES = Scale(
    "accuracy_by_bytes",
    "by bytes, uploaded and downloaded, all clients together",
    ("upload_bytes", "download_bytes"),
    "uploaded and downloaded",
    "B",
)
BY_FLOPS = Scale(
    "accuracy_by_edge_flops",
    "by operations at the edge, all clients together",
    ("edge_flops",),
    "operations at the edge",
    "FLOP",
)
BY_VIRTUAL_TIME = Scale(
    "accuracy_by_virtual_time", "by the virtual time of the devices", ("virtual_s",), "virtual time", "s"
)
BY_WALL_TIME = Scale("accuracy_by_wall_time", "by wall time of the simulation", ("round_s",), "wall time", "s")

"""Amounts and times in a suitable unit, for texts and for the axes of figures; decimal prefixes are rich's."""

from rich.filesize import pick_unit_and_suffix

UNKNOWN = "–"
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
_TIMES = ((2 * 86400, 86400, "days"), (7200, 3600, "h"), (120, 60, "min"), (1, 1, "s"), (0, 0.001, "ms"))


def unit_of(largest: float, unit: str) -> tuple[float, str]:
    """Return a divisor for numbers up to `largest`, which is in `unit`, and the name of the resulting unit.

    Seconds ("s") become days, h, min, s or ms; other units get a decimal prefix.
    """
    if unit == "s":
        return next(((size, name) for least, size, name in _TIMES if largest >= least), (0.001, "ms"))
    return pick_unit_and_suffix(int(largest), [prefix + unit for prefix in _PREFIXES], 1000)


def amount(value: float | None, unit: str) -> str:
    """Return an amount with three significant digits and a suitable unit, a dash if it is unknown."""
    if value is None:
        return UNKNOWN
    rounded = float(f"{value:.3g}")  # 999.9 kB are 1.00 MB
    if rounded == 0:
        return f"0 {unit}"
    size, name = unit_of(abs(rounded), unit)
    digits = f"{rounded:.3g}" if size == 1 and unit != "s" else f"{rounded / size:#.3g}".rstrip(".")
    return f"{digits} {name}"


def duration(seconds: float | None) -> str:
    """Return a time with three significant digits in a suitable unit, a dash if it is unknown."""
    return amount(seconds, "s")

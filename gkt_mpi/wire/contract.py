"""What a rank accepts at one moment: a header is checked, field by field, before any of its payload is received."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from gkt_mpi.errors import WireError
from gkt_mpi.wire.header import Header, Kind
from gkt_mpi.wire.messages import header_names, parts_of_block, payload_layout, payload_size

_OF_A_CLIENT = (Kind.TRAIN, Kind.MODEL, Kind.LOCAL, Kind.BLOCK, Kind.GRADIENT, Kind.REPORT)
_UPLOADS = (Kind.BLOCK, Kind.MODEL, Kind.REPORT)
_ABSENT = {  # the fields of a header of each kind that are 0
    kind: [name for name in Header._fields if name not in {"kind", "payload_bytes", *header_names(kind)}]
    for kind in Kind
}


def at_once(fill: Callable[[], None]) -> None:
    """Fill a buffer at once."""
    fill()


@dataclass(frozen=True)
class Accepts:
    """The part of a contract that says what messages are like, whoever sends them: what an inbox takes in.

    `block_rows` is the largest number of rows of a block. `model_bytes` is the size of the weights in a ModelState or a
    TrainRequest (of each client's, where they differ). `admit` is asked with a block's header, sample ids, labels and
    logits, and returns the bank's own rows, so that features are received in place; or it raises `WireError`.
    """

    kinds: frozenset[Kind]
    num_classes: int = 0
    feature_shape: tuple[int, int, int] = (0, 0, 0)
    row_bytes: int = 0
    codec: int = 0
    block_rows: int = 0
    model_bytes: int | Mapping[int, int] = 0
    admit: Callable[[Header, Tensor, Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Contract(Accepts):
    """What one rank accepts at one moment. Everything else is refused before its payload is received.

    `sender` tells which rank speaks for a client (server side: the worker that hosts it); `num_samples` how
    many samples a client has; a client missing from `num_samples` is unknown. `round` is that of all clients, or each
    client's own. `fill` is given the function that receives into the rows that `admit` has returned, to be called once,
    now or later, in any thread; that one may raise `LostRankError`. `state_bytes` is the size of a client's state (of
    each, where they differ), of a Check the largest. A gradient is expected for the block (`first`, `block_rows`).
    `device` is where the payload of a request or a gradient is wanted, None for the host.
    """

    round: int | Mapping[int, int] | None = None
    num_samples: Mapping[int, int] | None = None
    sender: Mapping[int, int] | None = None
    first: int = 0
    state_bytes: int | Mapping[int, int] = 0
    max_samples: int = 0
    max_spans: int = 0
    fill: Callable[[Callable[[], None]], None] = at_once
    device: torch.device | None = None

    @classmethod
    def of_uploads(
        cls,
        accepts: Accepts,
        round: int | Mapping[int, int],
        num_samples: Mapping[int, int],
        sender: Mapping[int, int],
        state_bytes: int | Mapping[int, int],
        max_spans: int,
    ) -> "Contract":
        """Return the contract of a server that takes in what an inbox accepts, from the clients in `num_samples`."""
        return cls(
            kinds=accepts.kinds,
            num_classes=accepts.num_classes,
            feature_shape=accepts.feature_shape,
            row_bytes=accepts.row_bytes,
            codec=accepts.codec,
            block_rows=accepts.block_rows,
            model_bytes=accepts.model_bytes,
            admit=accepts.admit,
            round=round,
            num_samples=num_samples,
            sender=sender,
            state_bytes=state_bytes,
            max_spans=max_spans,
        )

    @property
    def awaited(self) -> set[int]:
        """The ranks that have clients whose upload is not complete (server side)."""
        return {self.sender[client] for client in self.num_samples or ()} if self.sender is not None else set()

    @contextmanager
    def blame(self, source: int, header: Header) -> Iterator[None]:
        """Note in a `WireError` raised inside whose upload the message belongs to, if it is that client's worker's."""
        try:
            yield
        except WireError as error:
            is_expected = header.client in (self.num_samples or ())
            is_upload = is_expected and header.kind in _UPLOADS and header.round == self._round_of(header)
            if is_upload and self.sender is not None and self.sender[header.client] == source:
                error.client, error.closes_upload = header.client, header.kind == Kind.REPORT
            raise

    def check(self, source: int, header: Header) -> None:
        """Raise `WireError` naming rank and field unless `header`, sent by rank `source`, is acceptable here."""

        def expect(condition: bool, name: str, expected: object) -> None:
            """Raise `WireError` naming the field unless `condition` holds."""
            if not condition:
                found = getattr(header, name)
                raise WireError(f"rank {source} sent a message whose {name} is {found}; expected {expected}")

        expect(header.kind in self.kinds, "kind", " or ".join(f"{kind} ({kind.name})" for kind in sorted(self.kinds)))
        for name in _ABSENT[Kind(header.kind)]:
            expect(getattr(header, name) == 0, name, 0)
        expect(header.client >= 0, "client", "0 or more")
        if header.kind in _OF_A_CLIENT:
            self._check_client(source, header, expect)
        round = self._round_of(header)
        if round is not None:
            expect(header.round == round, "round", round)
        expect(header.round >= 0, "round", "0 or more")
        self._check_kind(header, expect)
        if header.kind in (Kind.HOST, Kind.REPORT):
            expected = _of_client(self.state_bytes, header)
            expect(header.state_bytes == expected, "state_bytes", expected)
        size = payload_size(header)
        expect(header.payload_bytes == size, "payload_bytes", size)

    def _check_kind(self, header: Header, expect: Callable[[bool, str, object], None]) -> None:
        """Check the fields that only messages of a header's kind have."""
        match header.kind:
            case Kind.SETUP:
                expect(2 <= header.num_classes <= 32767, "num_classes", "2 to 32767")
                for name in ("height", "width", "channels"):
                    expect(1 <= getattr(header, name) <= 65536, name, "1 to 65536")
                expect(header.precision in (0, 1), "precision", "0 or 1")
            case Kind.HOST:
                expect(1 <= header.num_samples <= self.max_samples, "num_samples", f"1 to {self.max_samples}")
            case Kind.TRAIN:
                assert self.num_samples is not None
                expect(
                    header.num_samples in (0, self.num_samples[header.client]),
                    "num_samples",
                    "none or all of the shard",
                )
                expect(header.num_classes == self.num_classes, "num_classes", self.num_classes)
                expect(header.first >= 0, "first", "0 or more")
                model_bytes = _of_client(self.model_bytes, header)
                expect(header.state_bytes in (0, model_bytes), "state_bytes", f"0 or {model_bytes}")
            case Kind.BLOCK:
                self._check_block(header, expect)
            case Kind.GRADIENT:
                for name, expected in (("first", self.first), ("num_samples", self.block_rows)):
                    expect(getattr(header, name) == expected, name, expected)
                expect(header.row_bytes == self.row_bytes, "row_bytes", self.row_bytes)
            case Kind.MODEL:
                model_bytes = _of_client(self.model_bytes, header)
                expect(header.state_bytes == model_bytes, "state_bytes", model_bytes)
            case Kind.CHECK:
                largest = _of_client(self.state_bytes, header)
                expect(1 <= header.state_bytes <= largest, "state_bytes", f"1 to {largest}")
            case Kind.REPORT:
                expect(0 <= header.num_spans <= self.max_spans, "num_spans", f"0 to {self.max_spans}")

    def _round_of(self, header: Header) -> int | None:
        """Return the round that a header's client, if it is an expected one, is in; None for any."""
        return self.round if self.round is None or isinstance(self.round, int) else self.round[header.client]

    def _check_client(self, source: int, header: Header, expect: Callable[[bool, str, object], None]) -> None:
        assert self.num_samples is not None
        expect(header.client in self.num_samples, "client", f"one of the {len(self.num_samples)} expected here")
        if self.sender is not None:
            expect(self.sender[header.client] == source, "client", "one that this rank hosts")

    def _check_block(self, header: Header, expect: Callable[[bool, str, object], None]) -> None:
        assert self.num_samples is not None
        height, width, channels = self.feature_shape
        expect(header.num_classes == self.num_classes, "num_classes", self.num_classes)
        expect(header.height == height, "height", height)
        expect(header.width == width, "width", width)
        expect(header.channels == channels, "channels", channels)
        expect(header.codec == self.codec, "codec", self.codec)
        expect(header.row_bytes == self.row_bytes, "row_bytes", self.row_bytes)
        expect(1 <= header.num_samples <= self.block_rows, "num_samples", f"1 to {self.block_rows}")
        last = self.num_samples[header.client] - header.num_samples
        expect(0 <= header.first <= last, "first", f"0 to {last}")

    def buffers(self, header: Header) -> Iterator[tuple[Tensor, Callable[[Callable[[], None]], None]]]:
        """Yield memory for each buffer of a checked header's payload, and what to hand the function to that fills it.

        Hand it over before asking for the next buffer: what it is handed to may call it later only for the last one.
        Raises `WireError` when what a block's other buffers hold forbids its features.
        """
        layout = payload_layout(header)
        if header.kind != Kind.BLOCK or self.admit is None:
            device = self.device if header.kind in (Kind.TRAIN, Kind.MODEL, Kind.GRADIENT) else None
            for dtype, shape in layout:
                yield torch.empty(shape, dtype=dtype, device=device), at_once
            return
        about = torch.empty(layout[0][1], dtype=torch.uint8)
        yield about, at_once
        yield self.admit(header, *parts_of_block(header, about)), self.fill


def _of_client(size: int | Mapping[int, int], header: Header) -> int:
    """Return the size that a header's client has; if there is no such client, one that nothing has."""
    return size if isinstance(size, int) else size.get(header.client, 2**63)

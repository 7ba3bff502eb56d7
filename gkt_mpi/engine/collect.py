"""How the server takes in a round's uploads: blocks as they come, straight into the bank, each checked."""

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple

from gkt_mpi.engine.bank import Bank
from gkt_mpi.errors import WireError
from gkt_mpi.observe.timeline import are_spans
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.messages import ClientReport, FeatureBlock, Message
from gkt_mpi.wire.transport import Transport


def collect_uploads(
    transport: Transport,
    contract: Contract,
    bank: Bank,
    expected: dict[int, int],
    on_block: Callable[[int], None],
    on_refusal: Callable[[str], None],
) -> dict[int, ClientReport]:
    """Receive until every client of `expected` (client to number of samples) has reported; return the reports.

    `expected` is what `contract` knows as `num_samples`: a client that has reported is taken out of it, so that
    whatever it still sends is refused. A block's features are checked in another thread while the next block is
    received. `on_block` is told the samples of each block, `on_refusal` why a message was refused; the round goes on.

    Raises `WireError` when a client reports with samples missing, or figures that cannot be.
    """
    reports: dict[int, ClientReport] = {}
    last_refusal = ""

    def refuse(error: WireError) -> None:
        """Remember and tell why a message was refused."""
        nonlocal last_refusal
        last_refusal = f"; the last message refused: {error}"
        on_refusal(str(error))

    def settle(check: "Future[None] | None") -> None:
        """Wait for the check of the block before, if there is one."""
        try:
            if check is not None:
                check.result()
        except WireError as error:
            refuse(error)

    with ThreadPoolExecutor(1, "check") as checker:
        check: Future[None] | None = None
        while expected:
            message: Message | None = None
            try:
                _, message = transport.receive(contract)
            except WireError as error:
                refuse(error)
            settle(check)
            check = None
            if isinstance(message, FeatureBlock):
                bank.claim(message)
                check = checker.submit(bank.check, message)
                on_block(len(message.sample_id))
            elif isinstance(message, ClientReport):
                missing = bank.num_missing(message.client)
                if missing:
                    text = f"client {message.client} closed its upload of round {message.round} with {missing} samples "
                    raise WireError(f"{text}missing{last_refusal}")
                if not all(math.isfinite(value) and value >= 0 for value in astuple(message.metrics)):
                    raise WireError(f"client {message.client} reported {message.metrics} in round {message.round}")
                if not are_spans(message.spans):
                    raise WireError(f"client {message.client} reported no valid timeline in round {message.round}")
                reports[message.client] = message
                del expected[message.client]
    return reports

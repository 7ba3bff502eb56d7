"""A round arranged as the released code arranges it, beside which benchmarks/round.py measures ours.

    mpirun -np 5 python -m mpi4py benchmarks/released.py CLIENTS IMAGES TEST BATCH ROUNDS

Written from the description of that code, with this project's networks, random images and random labels. Default tensor
layout, float32, `torch.optim.Adam`, as many threads a rank as torch chooses. Every client trains one epoch, then passes
its images and the whole test set through its network, with gradients on, and sends two pickled lists of dictionaries by
batch (features, logits, labels). The server waits for all, trains one epoch on one client's batches after another's,
evaluates on every client's test features, and sends the logits back, pickled. Rank 0 prints the seconds of each round.
"""

import json
import sys
import time
from typing import Any

import torch
from mpi4py import MPI
from torch import Tensor, nn

from gkt_mpi.models.networks import build_edge_model, build_server_model

Batches = dict[int, Any]  # of numpy arrays, by the number of the batch
CPU = torch.device("cpu")


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """Return the released optimizer."""
    return torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4, amsgrad=True)


def loss_of(logit: Tensor, label: Tensor, teacher: Tensor | None) -> Tensor:
    """Return the cross-entropy, and with a teacher the distillation at temperature 3."""
    loss = nn.functional.cross_entropy(logit, label)
    if teacher is None:
        return loss
    student = nn.functional.log_softmax(logit / 3, dim=1)
    target = nn.functional.softmax(teacher / 3, dim=1) + 1e-7
    return loss + 9 * nn.functional.kl_div(student, target, reduction="batchmean")


class Client:
    """An edge network, its images, and the test set, which every client has."""

    def __init__(self, images: int, test: int, batch: int) -> None:
        model = build_edge_model("resnet8", (32, 32, 3), 10, torch.Generator().manual_seed(0), CPU)
        self.model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.optimizer = adam(self.model)
        self.train_set, self.test_set = (
            (torch.rand(num, 3, 32, 32).split(batch), torch.randint(0, 10, (num,)).split(batch))
            for num in (images, test)
        )

    def round(self, teacher: Batches | None) -> tuple[list[Batches], list[Batches]]:
        """Train an epoch; return features, logits and labels of the images and of the test set."""
        self.model.train()
        for number, (image, label) in enumerate(zip(*self.train_set, strict=True)):
            _, logit = self.model(image)
            loss = loss_of(logit, label, None if teacher is None else torch.from_numpy(teacher[number]))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.model.eval()
        return self.extract(*self.train_set), self.extract(*self.test_set)

    def extract(self, images: tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> list[Batches]:
        """Pass images through the network, gradients on, as released."""
        features: Batches = {}
        logits: Batches = {}
        for number, image in enumerate(images):
            feature, logit = self.model(image)
            features[number], logits[number] = feature.detach().numpy(), logit.detach().numpy()
        return [features, logits, {number: label.numpy() for number, label in enumerate(labels)}]


class Server:
    """The large network."""

    def __init__(self) -> None:
        model = build_server_model("resnet56", (32, 32, 16), 10, torch.Generator().manual_seed(0), CPU)
        self.model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.optimizer = adam(self.model)

    def round(self, uploads: list[tuple[list[Batches], list[Batches]]]) -> list[Batches]:
        """Train on one client after another; return each one's logits, those of the training passes."""
        answers: list[Batches] = []
        self.model.train()
        for (features, _, labels), _ in uploads:
            answers.append({})
            for number, feature in features.items():
                logit = self.model(torch.from_numpy(feature))
                loss = loss_of(logit, torch.from_numpy(labels[number]), None)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                answers[-1][number] = logit.detach().numpy()
        self.model.eval()
        with torch.no_grad():
            for _, (features, _, labels) in uploads:
                for number, feature in features.items():
                    logit = self.model(torch.from_numpy(feature))
                    (logit.argmax(1) == torch.from_numpy(labels[number])).sum().item()
        return answers


def main() -> None:
    """Be the server or a client."""
    clients, images, test, batch, rounds = map(int, sys.argv[1:])
    comm = MPI.COMM_WORLD
    assert comm.size == clients + 1
    if comm.rank > 0:
        client, teacher = Client(images, test, batch), None
        for _ in range(rounds):
            comm.send(client.round(teacher), 0)
            teacher = comm.recv(source=0)
        return
    server, seconds = Server(), []
    for _ in range(rounds):
        began = time.perf_counter()
        answers = server.round([comm.recv(source=rank) for rank in range(1, comm.size)])
        for rank, answer in enumerate(answers, 1):
            comm.send(answer, rank)
        seconds.append(time.perf_counter() - began)
    print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()

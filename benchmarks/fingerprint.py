"""Whether a feature tells which client made it: python benchmarks/fingerprint.py RUN... (needs scikit-learn).

Test images are dealt out to the clients at random, so that all have the same mix of classes, and pass through the stem
of "their" client as the newest checkpoint of a run of fedgkt has it. From each channel's mean and standard deviation a
logistic regression learns to name the client, on one half of the images; printed is how often it is right on the other
half. As a control all images pass through one client's stem: then nothing but chance is left.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gkt_mpi.build import edges_of, pipeline_of
from gkt_mpi.config import RunConfig, parse
from gkt_mpi.data.datasets import prepare
from gkt_mpi.data.shard import Shard

CPU = torch.device("cpu")
MOST_IMAGES = 8000


@torch.no_grad()
def features_of(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each image's feature in short (N, 32), by its client's stem and by client 0's, and whose it is (N,)."""
    config = _config_of(folder)
    newest = sorted(folder.glob("checkpoints/round-*.pt"))[-1]
    states = torch.load(newest, weights_only=True)["state"]["clients"]
    file = prepare(config.data, lambda done, total: None)
    edges = edges_of(config, file, CPU)
    rows = np.random.default_rng(0).permutation(len(file.labels("test")))[:MOST_IMAGES]
    images = Shard.load(file, "test", rows, pipeline_of(config, file, CPU), CPU)
    image = images.pipeline.plain(images.image)
    client = np.arange(len(rows)) % len(states)
    own, common = np.zeros((len(rows), 32)), np.zeros((len(rows), 32))
    for k, state in enumerate(states):
        for out, source in ((own, state), (common, states[0])):
            edges[k].load(source)
            edges[k].model.eval()
            feature = edges[k].model.stem(image[client == k])
            out[client == k] = torch.cat([feature.mean((2, 3)), feature.std((2, 3))], 1).numpy()
    return own, common, client


def _config_of(folder: Path) -> RunConfig:
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    config = parse(["--config", str(folder / "config.yaml")])
    assert saved["algorithm"] == "fedgkt"
    return config


def share_named(feature: np.ndarray, client: np.ndarray) -> float:
    """Return how often a linear probe, trained on one half, names the client of the other half's features."""
    half = len(client) // 2
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(feature[:half], client[:half])
    return float(probe.score(feature[half:], client[half:]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, nargs="+", help="folder of a run, with its checkpoint")
    table = Table(title="how often a linear probe names the client of a feature", title_justify="left")
    for name in ("run", "chance", "each image by its client's stem", "all by one stem"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for folder in parser.parse_args().run:
        own, common, client = features_of(folder)
        shares = (1 / (client.max() + 1), share_named(own, client), share_named(common, client))
        table.add_row(folder.name, *(f"{share:.3f}" for share in shares))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

"""Exports the trained networks of a run: python -m gkt_mpi.programs.export RUN [--out DIR] [--client K] [--help].

    safetensors   stem, edge, server, model.safetensors   the weights; a device needs the stem only
    torch         model.pt2                               images to logits, for torch.export.load
    onnx          model.onnx                              the same, for onnxruntime and other runtimes
    always        model.json                              shapes, normalisation, classes, and how the parts are composed

Programs and ONNX models are loaded again and must give the logits of the run's own network.
"""

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from gkt_mpi.errors import ConfigError, GktError, what_to_do
from gkt_mpi.extras import import_extra
from gkt_mpi.federation.client import edge_names
from gkt_mpi.log.output import never_fail_on_encoding, status_of
from gkt_mpi.models.weights import save_weights
from gkt_mpi.plain import Json
from gkt_mpi.trained import TrainedRun, Which, load

LIBRARIES = {"safetensors": ("safetensors.torch",), "torch": (), "onnx": ("onnx", "onnxscript", "onnxruntime")}
_LARGEST_DIFFERENCE = 1e-4  # of a logit
_BATCHES = 1, 3  # sizes of the batches that are compared


class Export:
    """The networks of a run and a client, to be written into a folder."""

    def __init__(self, run: TrainedRun, folder: Path, client: int | None = None, which: Which = "last") -> None:
        """Load the networks. Raises as `TrainedRun.model`."""
        self.run, self.folder, self.client, self.which = run, folder, client, which
        self.model, self._parts = run.model(client, which), run.parts(client, which)

    def write(self, formats: Sequence[str]) -> Iterator[str]:
        """Write model.json and the files of these formats, and yield a line for each file.

        Raises `ConfigError` if a format is unknown or a library is missing, before anything is written, and `GktError`
        if a file cannot be written, or yields other logits than the run's network.
        """
        for name in formats:
            if name not in LIBRARIES:
                raise ConfigError(f"--formats has {name!r}; expected one or more of {', '.join(LIBRARIES)}")
            for library in LIBRARIES[name]:
                with _quiet():
                    import_extra(library, "export", f"--formats {name}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.description(formats), indent=2)
            (self.folder / "model.json").write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise GktError(f"cannot write {self.folder}: {error}; choose another folder with --out") from error
        yield "model.json: shapes, normalisation and classes"
        if "safetensors" in formats:
            yield from self._write_weights()
        if "torch" in formats:
            yield self._write_checked("model.pt2", self._save_program, self._load_program)
        if "onnx" in formats:
            yield self._write_checked("model.onnx", self._save_onnx, self._load_onnx)

    @cached_property
    def weights(self) -> dict[str, dict[str, Tensor]]:
        """The weights by file, each by name: as `client.weights` and `server.weights` read them."""
        whole = self.model.state_dict()
        files = {"stem": {name: whole[name] for name in whole if name.startswith("stem.")}}
        if self._parts.edge is not None:
            files["edge"] = self._parts.edge.state_dict()
        if self._parts.server is not None:
            files |= {"server": self._parts.server.state_dict(), "model": whole}
        return {f"{name}.safetensors": tensors for name, tensors in files.items()}

    def description(self, formats: Sequence[str]) -> Json:
        """Return the contents of model.json: lists, numbers and text."""
        run, input = self.run, self.run.input
        height, width, channels = input.image_shape
        with torch.no_grad():
            feature = self.model.stem(self._example(1))
        description: Json = {
            "run": run.config.name,
            "algorithm": run.config.algorithm,
            "client": self.client,
            "rounds": run.rounds_done(self.which),
            "networks": {"edge": self._edge_name, "large": run.config.server.model if self._parts.server else None},
            "input": {"image": ["batch", channels, height, width], "dtype": "float32", "range": [0, 1]},
            "mean": list(input.mean),
            "std": list(input.std),
            "feature": ["batch", *feature.shape[1:]],
            "output": {"logits": ["batch", len(input.classes)], "dtype": "float32"},
            "composition": "feature = stem((image - mean) / std); logits = layers(feature)",
            "layers": "layers of server.safetensors" if self._parts.server else "head of edge.safetensors",
            "classes": list(input.classes),
        }
        if "safetensors" in formats:
            description["weights"] = {
                file: {name: list(tensor.shape) for name, tensor in tensors.items()}
                for file, tensors in self.weights.items()
            }
        return description

    @property
    def _edge_name(self) -> str | None:
        """The name of the client's edge model, or of the first client's for the network for everybody."""
        config = self.run.config
        if self._parts.edge is None:
            return None
        return edge_names(config.client.model, config.clients or 1)[self.client or 0]

    def _write_weights(self) -> Iterator[str]:
        """Write the safetensors files, and yield a line for each."""
        for file, tensors in self.weights.items():
            save_weights(tensors, self.folder / file)
            yield f"{file}: {len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} numbers"

    def _write_checked(
        self, file: str, save: Callable[[Path], None], load: Callable[[Path], Callable[[Tensor], Tensor]]
    ) -> str:
        """Write a file, load it and compare its logits with the network's; return a line.

        Raises `GktError`, and deletes the file, if they differ.
        """
        path = self.folder / file
        try:
            with _quiet(), torch.no_grad():
                save(path)
                loaded = load(path)
                images = [self._example(size) for size in _BATCHES]
                difference = max(float((loaded(image) - self.model(image)).abs().max()) for image in images)
        except GktError:
            raise
        except OSError as error:
            raise GktError(f"cannot write {path}: {error}; {what_to_do(self.folder)}") from error
        except Exception as error:  # of a user's network that cannot be exported, almost any exception
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise GktError(f"{file} cannot be made of this network: {why}; use another format") from error
        if not difference <= _LARGEST_DIFFERENCE:
            path.unlink()
            raise GktError(
                f"{file} was deleted: its logits differ from the run's by {difference:.1e}, more than "
                f"{_LARGEST_DIFFERENCE:.0e}; use another format"
            )
        return f"{file}: loaded again, its logits differ by at most {difference:.1e}"

    def _example(self, batch_size: int) -> Tensor:
        """Return random images, float32 (batch_size, channels, H, W) from 0 to 1."""
        height, width, channels = self.run.input.image_shape
        return torch.rand(batch_size, channels, height, width, generator=torch.Generator().manual_seed(batch_size))

    @cached_property
    def _program(self) -> torch.export.ExportedProgram:
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(self.model, (self._example(2),), dynamic_shapes={"image": {0: batch}})
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        return program

    def _save_program(self, path: Path) -> None:
        torch.export.save(self._program, path)

    def _load_program(self, path: Path) -> Callable[[Tensor], Tensor]:
        return torch.export.load(path).module()

    def _save_onnx(self, path: Path) -> None:
        made = torch.onnx.export(
            self._program,
            dynamo=True,
            dynamic_shapes={"image": {0: "batch"}},
            input_names=["image"],
            output_names=["logits"],
            external_data=False,
            verbose=False,
        )
        assert made is not None
        made.save(path)

    def _load_onnx(self, path: Path) -> Callable[[Tensor], Tensor]:
        runtime = import_extra("onnxruntime", "export", path.name)
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda image: torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings and log lines of exporting libraries, which are about their own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m gkt_mpi.programs.export", allow_abbrev=False, description="Exports the networks of a run."
    )
    parser.add_argument("run", type=Path, help="run folder, such as runs/digits")
    parser.add_argument("--out", type=Path, help="folder to write into; default: RUN/export")
    parser.add_argument("--client", type=int, help="client whose stem is used; needed where every client has its own")
    parser.add_argument(
        "--which", choices=get_args(Which), default="last", help="last: the newest checkpoint. best: best.pt"
    )
    parser.add_argument(
        "--formats", default=",".join(LIBRARIES), help=f"some of {','.join(LIBRARIES)}; default: all of them"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, print a line for each, and return the exit status."""
    never_fail_on_encoding()
    options = make_parser().parse_args(arguments)

    def write() -> None:
        """Write the files."""
        run = load(options.run)
        out = (options.out or run.folder / "export").expanduser()
        for line in Export(run, out, options.client, options.which).write(options.formats.replace(" ", "").split(",")):
            print(f"{out}/{line}", flush=True)

    return status_of(write)


if __name__ == "__main__":
    sys.exit(main())

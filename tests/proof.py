"""Hash everything that the commands compute, to show that a change of the code changes no bit.

    python tests/proof.py --out before.json                        (on the old commit)
    python tests/proof.py --out after.json --compare before.json   (on the new one, on the same machine)

The script uses the command lines only and imports nothing of the project, so it runs unchanged on any commit. Hashes depend
on the processor and the versions of the libraries: compare them on one machine only. It takes about three minutes on two cores.
"""

import argparse
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

# Every setting that a configuration of the project might change is given here. The large weights and learning rates make
# samples that differ from each other after a few steps.
GAN = """
data: {name: digits, image_size: 32}
model: {latent_dim: 8, init_std: 0.2, generator: {channels: 8, norm: batch}, discriminator: {channels: 8}}
optimizer: {d_lr: 0.001, g_lr: 0.001}
training: {steps: 12, batch_size: 16, precision: fp32, d_batches: separate, ema_decay: 0.9}
checkpoint: {every: 5}
samples: {every: 4, count: 16}
tracking: {every: 2}
evaluation: {every: 0, extractor: efficientnet-lite0}
"""
CNN = """
data: {name: digits, image_size: 28, train_images: 400, test_images: 100}
model: {name: cnn3}
training: {epochs: 1.5, batch_size: 32, precision: fp32}
checkpoint: {every: 8}
tracking: {every: 2}
probes: {every: 5}
"""
SN, MSN = "model.discriminator.norm=spectral", "model.discriminator.norm=mean_spectral"
WGAN_GP = ["loss.name=wgan-gp", "training.d_steps=2", "optimizer.beta2=0.9"]
LONG = [MSN, "training.steps=150", "checkpoint.every=50", "checkpoint.keep=1", "samples.every=50", "tracking.every=1"]
CASES = {
    "sn": [SN],
    "msn_separate": [MSN],
    "msn_joint": [MSN, "training.d_batches=joint", "training.ema_decay=0"],
    "wgan_gp": [*WGAN_GP, "model.discriminator.norm=none"],
    "wgan_gp_batch": [*WGAN_GP, "model.discriminator.norm=batch"],
    "hinge": [SN, "loss.name=hinge", "model.generator.norm=none", "seed=1"],
    "wgan_clip": ["model.discriminator.norm=batch", "loss.name=wgan", "loss.clip=0.05", "optimizer.name=rmsprop"],
    "bf16": [MSN, "training.precision=bf16"],
    "accumulation": [MSN, "training.accumulation=2", "training.d_steps=2"],
    "decay_flip": [SN, "optimizer.decay=linear", "data.flip=true"],
    "streamed": [MSN, "data.name=folder", "data.path=WORK/images", "data.memory_gb=0", "data.flip=true", "data.workers=1"],
    "two_processes": [MSN, "training.precision=fp64"],
    "whole": LONG,
    "interrupted": LONG,
    "cnn3_msn": ["model.norm=mean_spectral"],
    "cnn3_sn": ["model.norm=spectral"],
}
SAMPLES = {
    "grid.png": "--count 10 --seed 3",
    "raw.png": "--weights raw --columns 5",
    "walk.png": "--interpolate 2",
    "images.zip": "--single --count 12",
    "training.gif": "--animate",
    "kept.gif": "--animate checkpoints --count 4",
}
# Keys of JSON files that tell times and the machine; the checksums in checkpoint.json are of files that are hashed by content.
LEFT_OUT = ("seconds", "images_per_second", "versions", "device", "sha256", "bytes")


class Proof:
    """Run commands with ``program`` as working directory, write below ``work`` and collect hashes by name."""

    def __init__(self, program: Path, work: Path) -> None:
        self.program, self.work = program, work
        self.hashes: dict[str, str] = {}
        self.environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "MSNGAN_CACHE": str(work / "cache"), "PYTHONPATH": str(program),
            "ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        (work / "gan.yaml").write_text(GAN)
        (work / "cnn.yaml").write_text(CNN)
        (work / "images").mkdir()
        for index, pixels in enumerate(np.random.RandomState(0).randint(0, 256, (48, 40, 36, 3)).astype(np.uint8)):
            (work / "images" / f"{index:02d}.ppm").write_bytes(b"P6 36 40 255\n" + pixels.tobytes())

    def run(self, *words: object, stop_at: tuple[Path, int] | None = None) -> str:
        """Return what a command prints; ``stop_at``: send it SIGTERM once this file has so many lines."""
        command = [sys.executable, *(str(word).replace("WORK", str(self.work)) for word in words)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=self.program, env=self.environment, stdout=pipe, stderr=pipe, text=True)
        if stop_at:
            file, lines = stop_at
            while process.poll() is None and not (file.exists() and file.read_text().count("\n") >= lines):
                time.sleep(0.005)
            process.terminate()
        printed, errors = process.communicate(timeout=900)
        if process.returncode != (128 + signal.SIGTERM if stop_at else 0):
            raise SystemExit(f"{command}: exit code {process.returncode}\n{errors}")
        return printed

    def add(self, name: str, value: Any) -> None:
        self.hashes[name] = plain(json.dumps(plain(value), sort_keys=True).encode())

    def add_folder(self, name: str, folder: Path) -> None:
        """Hash each file of a run, an export or a report, and the list of their names."""
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]  # no locks
        self.add(f"{name}/files", [path.relative_to(folder).as_posix() for path in files])
        for path in files:
            if path.name not in ("environment.json", "checkpoint.sha256"):  # the machine; a hash of checkpoint.json
                self.add(f"{name}/{path.relative_to(folder).as_posix()}", self.content(path))

    def content(self, path: Path) -> Any:
        """Return what is computed in a file, without times, versions and folders."""
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".pt":
            return torch.load(path, weights_only=True)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {key: torch.from_numpy(arrays[key]) for key in ("mu", "sigma")}
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines()]
        if path.suffix == ".json":
            return json.loads(path.read_text())
        if path.suffix in (".yaml", ".md", ".csv"):
            lines = [line for line in path.read_text().splitlines() if not line.startswith("  dir:")]  # of config.yaml
            return "\n".join(lines).replace(str(self.work), "WORK")
        return path.read_bytes()

    def command(self, name: str) -> list[object]:
        """Return the command that trains a case."""
        common = [*CASES[name], f"run.dir={self.work / 'runs' / name}", "run.name=run"]
        if name.startswith("cnn3"):
            return ["-m", "study", "train", "--config", self.work / "cnn.yaml", *common]
        launch: list[object] = []
        if name == "two_processes":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            options = f"--num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port {port}"
            launch = ["-m", "accelerate.commands.launch", "--multi_gpu", *options.split()]
        return [*launch, "train.py", "--config", self.work / "gan.yaml", *common]

    def train(self, name: str) -> Path:
        """Train a case and return its folder; ``interrupted`` is stopped on the way by SIGTERM and started again."""
        run = self.work / "runs" / name / "run"
        if name == "interrupted":
            self.run(*self.command(name), stop_at=(run / "metrics.jsonl", 30))
            assert not (run / "checkpoints" / "step-00000150").exists(), "the run had reached its end before it was stopped"
        self.run(*self.command(name))
        self.add_folder(name, run)
        return run

    def score(self) -> None:
        """Train, train on with a score at the end, and call each command that scores."""
        run, out = self.train("msn_separate"), self.work / "scores"
        extractor = ("--extractor", "efficientnet-lite0")
        self.run(*self.command("msn_separate"), "training.steps=14", "evaluation.every=14")
        self.run("-m", "eval", "score", run / "checkpoints" / "step-00000010", "--protocol", "quick", "--seed", 1, *extractor)
        self.run("-m", "gan", "sample", run, "--single", "--count", 40, "--out", out / "images.zip")
        self.run("-m", "eval", "reference", "digits", "--out", out / "digits.npz", *extractor)
        found = self.run("-m", "eval", "images", out / "images.zip", "digits", "--size", "32", "--json", *extractor)
        (out / "images.json").write_text(found)
        self.add_folder("msn_separate", run)
        self.add_folder("scores", out)

    def sample(self) -> None:
        """Call each command that makes pictures or tables."""
        run, out = self.train("sn"), self.work / "samples"
        for name, options in SAMPLES.items():
            self.run("-m", "gan", "sample", run, "--out", out / name, *options.split())
        self.run("-m", "gan", "export", run, "--out", out / "exported")
        self.run("-m", "gan", "sample", out / "exported", "--out", out / "of_export.png")
        self.run("-m", "study", "tables", "--out", out / "tables")
        self.add_folder("samples", out)


def plain(value: Any) -> Any:
    """Return nested dicts and lists as JSON data, with hashes for bytes and tensors and without the keys in ``LEFT_OUT``."""
    if isinstance(value, dict):
        return {repr(key): plain(inner) for key, inner in value.items() if key not in LEFT_OUT}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, torch.Tensor):
        content = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return [str(value.dtype), list(value.shape), plain(content)]
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else value


def differences(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Return the names of hashes that differ or are in one of the two only."""
    return [f"{name} differs" for name in sorted({*old, *new}) if old.get(name) != new.get(name)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write: name -> SHA-256")
    parser.add_argument("--program", type=Path, default=Path(__file__).parent.parent, help="the checkout to run (default: this)")
    parser.add_argument("--work", type=Path, help="a new folder for the runs, which are kept (default: a temporary one)")
    parser.add_argument("--compare", type=Path, help="hashes of another commit; exit code 1 where one differs")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:  # two commands at a time, in a thread each
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        proof = Proof(options.program.resolve(), work)
        jobs: list[Future[Any]] = [pool.submit(proof.score), pool.submit(proof.sample)]
        jobs += [pool.submit(proof.train, name) for name in CASES if name not in ("msn_separate", "sn")]
        for job in jobs:
            job.result()
    hashes = dict(sorted(proof.hashes.items()))
    options.out.write_text(json.dumps(hashes, indent=1) + "\n")
    print(f"{len(hashes)} hashes in {time.monotonic() - began:.0f} s: {options.out}")
    # A run that was stopped and started again must be the undisturbed one, whatever the other commit did.
    whole = {name: value for name, value in hashes.items() if name.startswith("whole/")}
    resumed = {name.replace("interrupted/", "whole/"): hashes[name] for name in hashes if name.startswith("interrupted/")}
    failed = [f"resumed and undisturbed run: {line}" for line in differences(whole, resumed)]
    failed += differences(json.loads(options.compare.read_text()), hashes) if options.compare else []
    print("\n".join(failed or ["nothing differs"]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Train emoji-flux: autoencoder, flow transformer with text encoders, distillation.

Every stage is limited by the clock, or by iterations where those are given, is resumed from its
checkpoint in OUT, and exports what it made when it ends, so that a later stage that fails loses
nothing. On a GPU steps run in bfloat16 as CUDA graphs, the transformer's blocks compiled; on a CPU
the same code runs plainly, in float32 unless ``--bfloat16`` is given.
"""

import argparse
import json
import math
import shutil
import sys
import tarfile
import time
import traceback
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline

from training import data, distil, flow, proof, steps, text, vae
from training.steps import say

PLAIN = "--plain"
# What is trained how long and on how much, if the command does not say: minutes on a large GPU,
# hours on two CPU cores.
USUAL = {
    "cuda": {
        "vae_minutes": 1.8,
        "flow_minutes": 6.5,
        "distil_minutes": 1.5,
        "batch": 512,
        "pool": 200_000,
    },
    "cpu": {
        "vae_minutes": 120.0,
        "flow_minutes": 600.0,
        "distil_minutes": 120.0,
        "batch": 64,
        "pool": 20_000,
    },
}


def arguments_of(command: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    proof.add_arguments(parser)
    parser.add_argument(
        "--start",
        type=Path,
        help="folder with pipeline and reports, as data/emoji-flux, to go on from",
    )
    parser.add_argument("--deliver", type=Path, help="folder for the results as a few files")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--until", type=float, default=math.inf, help="hard stop, seconds")
    for stage in ("vae", "flow", "distil"):
        parser.add_argument(f"--{stage}-minutes", type=float, help="by the device if not given")
        parser.add_argument(f"--{stage}-iterations", type=int, help="instead of minutes")
    parser.add_argument("--vae-batch", type=int, default=32)
    parser.add_argument("--batch", type=int, help="of flow and distillation; by the device")
    parser.add_argument("--pool", type=int, help="pictures to paint and encode; by the device")
    parser.add_argument("--held-out", type=int, default=512, help="pictures to measure with")
    parser.add_argument("--vae-rate", type=float, default=2e-3)
    parser.add_argument("--flow-rate", type=float, default=1.5e-3)
    parser.add_argument("--distil-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--bfloat16", action="store_true", help="on a CPU too, if it is faster")
    parser.add_argument(
        PLAIN, action="store_true", help="neither CUDA graphs nor torch.compile on a GPU"
    )
    arguments = parser.parse_args(command)
    usual = USUAL["cuda" if arguments.device.startswith("cuda") else "cpu"]
    for name, value in usual.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


class Session:
    """What the stages share."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, self.out = arguments, arguments.out
        self.device = torch.device(arguments.device)
        self.on_gpu = self.device.type == "cuda"
        half = self.on_gpu or arguments.bfloat16
        self.dtype = torch.bfloat16 if half else torch.float32
        self.fast = self.on_gpu and not arguments.plain
        self.selection = data.read_selection(arguments.data)
        if arguments.start:
            take_over(arguments.start, self.out)
        self.tokenizers = text.kept_tokenizers(self.selection, self.out / "tokenizers")
        self.going_on = {}
        if arguments.start:
            earlier = json.loads((arguments.start / "reports" / "flow.json").read_text("utf-8"))
            del earlier["history"]
            begin = load_model(self, arguments.start)[0]
            self.going_on = {"begin": begin, "earlier": earlier}
        self.failures: list[str] = []
        self.icons = data.load_icons(self.selection, arguments.assets)
        self.painter = data.Painter(self.icons, self.device)
        self.scenes, self.held_out = (
            data.Scenes(self.selection, held_out, self.device) for held_out in (False, True)
        )

    def budget(self, stage: str, elapsed: float) -> steps.Budget:
        """The budget of a stage that has been running for ``elapsed`` seconds before."""
        arguments = self.arguments
        minutes = getattr(arguments, f"{stage}_minutes")
        iterations = getattr(arguments, f"{stage}_iterations")
        # What has to come after a stage before the hard stop.
        after = {"distil": 30.0}
        after["flow"] = after["distil"] + 60 * arguments.distil_minutes
        after["vae"] = after["flow"] + 60 * arguments.flow_minutes
        return steps.Budget(minutes, iterations, elapsed, arguments.until - after[stage])

    def pictures(self, count: int, seed: int) -> torch.Tensor:
        """Held-out pictures, half of them of two things."""
        torch.manual_seed(seed)
        ones = count // 2
        return data.paint(self.painter, self.held_out.draw(ones, count - ones), ones)

    def pools(self, autoencoder: AutoencoderKL) -> tuple[flow.Pool, flow.Pool]:
        """Fresh pictures to train on, and held-out ones to measure with, as latents."""
        parts = tuple(
            text.Parts(tokenizer, self.selection, self.device) for tokenizer in self.tokenizers
        )
        pools = []
        for scenes, count in (
            (self.scenes, self.arguments.pool),
            (self.held_out, self.arguments.held_out),
        ):
            torch.manual_seed(self.arguments.seed + 10 + len(pools))
            pools.append(
                flow.Pool.encode(autoencoder, self.painter, scenes, parts, count, self.dtype)
            )
        if self.on_gpu:
            torch.cuda.synchronize()
        say(f"pool: {len(pools[0].mean)} pictures are encoded")
        return tuple(pools)

    def remaining(self) -> float:
        """Seconds until the hard stop."""
        return self.arguments.until - (time.monotonic() - steps.STARTED)


def check_start(folder: Path) -> None:
    """Raise FileNotFoundError where a folder has not all that a training goes on from."""
    for file in ("model_index.json", "reports/vae.json", "reports/flow.json"):
        if not (folder / file).exists():
            raise FileNotFoundError(
                f"{folder} has no {file}: --start takes a folder as training.card writes it, such"
                " as data/emoji-flux"
            )


def take_over(folder: Path, out: Path) -> None:
    """Copy a pipeline's autoencoder and tokenizers to ``out``, where the stages look for them.

    What is in ``out`` already stays, since its stages were trained with it.
    """
    check_start(folder)
    if not (out / "vae.json").exists():
        shutil.copytree(folder / "vae", out / "vae", dirs_exist_ok=True)
        shutil.copy(folder / "reports" / "vae.json", out)
    for name in ("tokenizer", "tokenizer_2"):
        if not (out / "tokenizers" / name).exists():
            shutil.copytree(folder / name, out / "tokenizers" / name)


def load_model(session: Session, folder: Path) -> tuple[flow.FlowModel, AutoencoderKL]:
    """The parts of an exported pipeline, in float32."""
    pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    model = flow.FlowModel(*session.tokenizers)
    for part, _ in model.named_children():
        getattr(model, part).load_state_dict(getattr(pipeline, part).state_dict())
    return model.to(session.device).eval(), pipeline.vae.to(session.device).eval()


def attempt(what: str, action: callable, session: Session, needed: float) -> None:
    """Do something that may fail without loss, if ``needed`` seconds are left."""
    if session.remaining() < needed:
        say(f"no time left for {what}")
        return
    try:
        action()
    except Exception:
        say(f"{what} failed")
        session.failures.append(what)
        traceback.print_exc()
    deliver(session)


def deliver(session: Session) -> None:
    """Put the results so far into a few files."""
    folder, out = session.arguments.deliver, session.out
    if not folder:
        return
    folder.mkdir(parents=True, exist_ok=True)
    final = "pipeline" if (out / "pipeline").exists() else "teacher"
    groups = {
        "base.tar": [path for path in sorted(out.glob(f"{final}/*")) if path.name != "transformer"]
        or [path for path in [out / "vae"] if path.exists()],
        "transformer.tar": list(out.glob("pipeline/transformer")),
        "teacher-transformer.tar": list(out.glob("teacher/transformer")),
        "reports.tar": sorted([*out.glob("*.json"), *out.glob("*.png")]),
    }
    for name, paths in groups.items():
        if not paths:
            continue
        with steps.replacing(folder / name) as part, tarfile.open(part, "w") as archive:
            for path in paths:
                archive.add(path, arcname=str(path.relative_to(out)))
        size = (folder / name).stat().st_size / 2**20
        say(f"delivered {name}, {size:.1f} MiB")


def train_all(session: Session) -> None:
    """The three stages."""
    arguments, out = session.arguments, session.out
    common = {"seed": arguments.seed, "dtype": session.dtype, "graph": session.fast}
    if (out / "vae.json").exists():
        autoencoder = AutoencoderKL.from_pretrained(out / "vae", use_safetensors=True)
        autoencoder = autoencoder.to(session.device).eval()
        say("vae: done before")
    else:
        autoencoder = vae.train(
            session.painter,
            session.scenes,
            session.pictures(arguments.held_out, seed=1),
            out,
            lambda elapsed: session.budget("vae", elapsed),
            batch=arguments.vae_batch,
            rate=arguments.vae_rate,
            **common,
        )
        deliver(session)
    pools = session.pools(autoencoder)
    common |= {"batch": arguments.batch, "compiles": session.fast}
    if (out / "teacher" / "model_index.json").exists() and (out / "flow.json").exists():
        teacher, autoencoder = load_model(session, out / "teacher")
        say("flow: done before")
    else:
        teacher, report = flow.train(
            *pools,
            session.tokenizers,
            out,
            lambda elapsed: session.budget("flow", elapsed),
            rate=arguments.flow_rate,
            **session.going_on,
            **common,
        )
        say(f"flow: held-out loss {report['held_out_loss']:.4f}")
        pipeline = flow.pipeline_of(teacher, autoencoder, *session.tokenizers)
        flow.export(pipeline, out / "teacher")
    if (out / "pipeline" / "model_index.json").exists():
        student = load_model(session, out / "pipeline")[0]
        say("distil: done before")
    else:
        student, _ = distil.train(
            teacher,
            *pools,
            out,
            lambda elapsed: session.budget("distil", elapsed),
            rate=arguments.distil_rate,
            **common,
        )
    pipeline = flow.pipeline_of(student, autoencoder, *session.tokenizers)
    flow.export(pipeline, out / "pipeline")
    deliver(session)
    torch.set_float32_matmul_precision("highest")
    unguided = flow.pipeline_of(teacher, autoencoder, *session.tokenizers)
    for name, made, guidance in (("emoji-flux", pipeline, 3.5), ("teacher", unguided, 1.0)):
        judged = (made, name, session.selection, session.icons, arguments, guidance)
        attempt(f"the proof of {name}", lambda judged=judged: proof.measure(*judged), session, 15)


def main() -> None:
    """Train, export, sample, judge."""
    arguments = arguments_of()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("high")
    arguments.out.mkdir(parents=True, exist_ok=True)
    session = Session(arguments)
    say(f"torch {torch.__version__} on {vae.device_name(session.device)}, plain {not session.fast}")
    say(f"{len(session.icons)} icons, {len(session.scenes.doubles)} scenes of two things")
    try:
        train_all(session)
    except Exception:
        if not session.fast:
            raise
        traceback.print_exc()
        say(f"starts again with {PLAIN}: neither CUDA graphs nor torch.compile")
        steps.start_again(PLAIN)
    if session.failures:
        sys.exit(f"failed: {', '.join(session.failures)}")
    say("finished")


if __name__ == "__main__":
    main()

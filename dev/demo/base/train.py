"""From nothing to a Stable Diffusion 1.5 checkpoint of the miniature world, by one command that can be stopped and started again:

    python dev/demo/base/train.py --comfyui PATH --work FOLDER

Stages: pictures, autoencoder, text encoder, UNet, assembly. Each leaves its result in the work folder and is skipped when it is there.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # in place of this folder: its module names are too plain to stand on the path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a shared machine waiting threads must not burn the others' time

import torch  # noqa: E402

from base.settings import Settings  # noqa: E402


def results(stored: Path, settings: Settings, work: Path, log) -> None:
    """Writes the three networks of ``stored`` as if the stages had left them in ``work``."""
    from base import loop, parts, storage, text

    networks = {"autoencoder": parts.autoencoder(), "text": text.trainable(settings), "unet": parts.unet()}
    storage.fill(stored, vae=networks["autoencoder"], encoder=networks["text"].encoder, unet=networks["unet"])
    for name, network in networks.items():
        loop.save(network.state_dict(), work / f"{name}.pt")
    log.write(stage="start", networks_of=stored.name, bits=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"), help="ComfyUI's folder (default: COMFYUI_PATH)")
    parser.add_argument("--work", type=Path, required=True, help="where states, results and the log go")
    parser.add_argument("--until", choices=("pictures", "autoencoder", "text", "unet", "checkpoint"), default="checkpoint")
    parser.add_argument("--threads", type=int, default=2, help="1 on a machine whose cores others use: waiting for a starved second thread costs double")
    parser.add_argument("--start", type=Path, metavar="STORED", help="a stored base whose networks stand for the results of the stages up to the UNet's first")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=NUMBER", help="settings other than settings.py's; they go into the log")
    options = parser.parse_args()
    if options.comfyui is None:
        parser.error("no ComfyUI: give --comfyui or set COMFYUI_PATH")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(options.threads)
    from base.rooms import start_host

    work, stored = options.work.resolve(), options.start.resolve() if options.start else None  # before the host's folder becomes the current one
    start_host(options.comfyui, cpu=device.type == "cpu")
    from base import autoencoder, loop, pictures

    work.mkdir(parents=True, exist_ok=True)
    (work / "pid").write_text(str(os.getpid()))
    log, settings = loop.Log(work / "log.jsonl"), Settings().changed(options.set)
    log.write(stage="start", torch=torch.__version__, device=str(device), threads=options.threads, settings=settings.as_dict())

    stages = ("pictures", "autoencoder", "text", "unet", "checkpoint")
    wanted = stages[: stages.index(options.until) + 1]
    images = pictures.load(settings, work)
    if stored and not (work / "unet.pt").is_file():
        results(stored, settings, work, log)
    if "autoencoder" in wanted:
        vae = autoencoder.train(settings, images, work, log, device)
    if "text" in wanted:
        from base import text

        encoder = text.train(settings, work, log, device)
    if "unet" in wanted:
        from base import unet

        network = unet.train(settings, images, vae, encoder, work, log, device)
    if "checkpoint" in wanted:
        from base import storage

        std = torch.load(work / "unet.latents.pt", weights_only=True)["std"].item()
        stored = storage.write(work / "miniature.safetensors.xz", storage.compact(vae, encoder, network, std))
        fingerprint = storage.expand(stored, work / "miniature.safetensors")
        log.write(stage="checkpoint", bytes=stored.stat().st_size, fingerprint=fingerprint)


if __name__ == "__main__":
    main()

"""The options of `kindred.py demo` and `kindred.py serve`. Standard library only: kindred.py checks them before it sets anything up."""

from __future__ import annotations

import argparse
from pathlib import Path


def parse(arguments: list[str]) -> argparse.Namespace:
    """The checked options; ends the process with a sentence, or with the help."""
    parser = argparse.ArgumentParser(
        prog="kindred.py",
        description="demo: train a concept, save it, draw with it, and write a comparison picture. serve: ComfyUI with Kindred in your browser, with the same options for its checkpoint and port.",
    )
    parser.add_argument("command", choices=["demo", "serve"])
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="a Stable Diffusion 1.5 checkpoint of yours (without it: the miniature world's own)")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="three to six photos of one subject (without it: a drawn one)")
    parser.add_argument("--subject", default="honey", help="which of the drawn subjects, without --photos (default honey, a bear)")
    parser.add_argument("--token", default="<v1>", help="how prompts name the subject (default <v1>)")
    parser.add_argument("--class-word", metavar="WORD", help="what the subject is: dog, teapot, toy (needed with --photos)")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="with {token} and {class}; may be given several times")
    parser.add_argument("--name", default="demo", help="of the saved files (default demo); a number is added where it is taken")
    parser.add_argument("--steps", type=int, help="training steps")
    parser.add_argument("--resolution", type=int, help="side of the pictures in pixels")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--omega", type=float, default=0.6)
    parser.add_argument("--alpha", type=float, default=0.2)
    parser.add_argument("--cfg", type=float)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="do not use the graphics card")
    parser.add_argument("--port", type=int, help="of the server (default: a free one)")
    parser.add_argument("--serve", action="store_true", help="leave the page open afterwards")
    options = parser.parse_args(arguments)
    if options.photos and not options.class_word:
        parser.error("--photos needs --class-word: say in one word what the subject is, for example --class-word dog")
    for prompt in options.prompt or ():
        if "{token}" not in prompt:
            parser.error(f"--prompt {prompt!r} does not name the subject. Write {{token}} where it stands: 'a photo of a {{token}} {{class}} on the beach'")
    return options

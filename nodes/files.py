"""Save Concept and Load Concept: standard files that other tools read too."""

import logging

from comfy_api.latest import io, ui

from ..host.types import Clip, Model
from .concept import CATEGORY
from .training import LoraModelType, TokensType

log = logging.getLogger(__name__)


class KindredSave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KindredSave",
            display_name="Save Concept",
            category=CATEGORY,
            description="Saves the concept as standard files: a LoRA in models/loras/kindred and one embedding for each token in models/embeddings. Core's Load LoRA and embedding:NAME read them too.",
            search_aliases=["save lora", "save embedding", "export concept"],
            is_output_node=True,
            inputs=[
                LoraModelType.Input("lora", tooltip="From Train Concept (or another trainer)."),
                TokensType.Input("tokens", tooltip="From Train Concept."),
                io.String.Input("name", default="my_concept", tooltip="Name of the files. Prompts elsewhere say embedding:NAME."),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Off: a name that is taken gets a number. On: replaces an older concept of exactly this name, but never files of other concepts and tools.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["float16", "bfloat16", "float32"],
                    default="float16",
                    optional=True,
                    advanced=True,
                    tooltip="Precision of the LoRA's weights. float16 halves the file; float32 keeps every bit. Tokens are always float32.",
                ),
                io.Combo.Input(
                    "layout",
                    options=["comfyui", "kohya", "diffusers"],
                    default="comfyui",
                    optional=True,
                    advanced=True,
                    tooltip="Whose layer names the file uses. comfyui: core's. kohya: kohya's tools, A1111, and core too. diffusers: PEFT's LoRA, or Custom Diffusion's full weights if K and V were trained. kohya and diffusers need 'model'.",
                ),
                io.Float.Input(
                    "compress",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Store full differences (K and V) as a LoRA of the lowest rank that keeps this share of their squared norm: 0.95 leaves an error of about 22%, 0.99 of 10%. 0 = off, lossless.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The base model of the training. Only the layouts kohya and diffusers need it, for its layer names.",
                ),
                io.String.Input(
                    "which",
                    default="last",
                    optional=True,
                    tooltip="Which step to save: last, best (the best measured step of the training), or the number of a step that Train Concept kept, for example 300. The panel on Train Concept can fill it in.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "saved_name",
                    display_name="name",
                    tooltip="The name the concept was saved under, as Load Concept lists it. It has a number if the wanted name was taken.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, name=None, which=None) -> bool | str:
        """A name that no file can have, or a step that cannot be, is refused before the training, not after it."""
        from ..formats.kept_steps import check_which
        from ..formats.names import safe_name

        try:
            return bool((name is None or safe_name(name)) and (which is None or check_which(which)))
        except ValueError as error:
            return str(error)

    @classmethod
    def execute(
        cls, lora, tokens, name, overwrite=False, dtype="float16", layout="comfyui", compress=0.0, model: Model | None = None, which="last"
    ) -> io.NodeOutput:
        import torch

        from ..formats import concept_file, kept_steps
        from ..host import paths
        from ..host.layer_names import export_for

        lora, tokens, step = kept_steps.choose(which, lora, tokens)
        settings = {key if "." in key or key.startswith("ss_") else f"kindred.{key}": value for token in tokens[:1] for key, value in token.metadata.items()}
        saved = concept_file.save(
            lora,
            tokens,
            name,
            paths.lora_folder(),
            paths.embedding_folder(),
            dtype=getattr(torch, dtype),
            overwrite=overwrite,
            metadata=settings,
            export=export_for(model, layout, compress),
            lora_folders=paths.all_lora_folders(),
            embedding_folders=paths.all_embedding_folders(),
        )
        lines = [
            f"Saved as {saved.name}",
            *([saved.note] if saved.note else []),
            *([f"Step {step}" + (", the best of those measured" if which.strip().lower() == kept_steps.BEST else "")] if step else []),
            f"LoRA: {paths.SUBFOLDER}/{saved.lora.name}",
            *(f"{token.text} = embedding:{path.stem}" for token, path in zip(tokens, saved.embeddings, strict=True)),
        ]
        if saved.layout != "comfyui":
            lines.append(f"Layout: {saved.layout}")
        if saved.compressed:
            ranks = sorted(saved.compressed.ranks.values())
            lines.append(f"Compressed to ranks {ranks[0]} to {ranks[-1]}; relative error {saved.compressed.error:.1%}")
        lines += [f"Removed, as the replaced concept's: embedding:{path.stem}" for path in saved.removed]
        return io.NodeOutput(saved.name, ui=ui.PreviewText("\n".join(lines)))


class KindredLoad(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..host import paths

        return io.Schema(
            node_id="KindredLoad",
            display_name="Load Concept",
            category=CATEGORY,
            description="Loads a saved concept: the tuned model, and a text encoder whose prompts can name the tokens.",
            search_aliases=["load lora", "load embedding", "load concept"],
            inputs=[
                io.Model.Input("model", tooltip="A model of the architecture the concept was trained on."),
                io.Clip.Input("clip", tooltip="Its text encoder. Prompts on the output can name the tokens as they were written, for example <v1>."),
                io.Combo.Input(
                    "name",
                    options=paths.saved_concepts(),
                    tooltip="A concept of Save Concept, a LoRA file beside it, or (ending in /) a folder in models/loras written by diffusers, PEFT, Custom Diffusion or ClassDiffusion. Press R to refresh the list.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Strength of the concept on the model and its text encoder. It does not change the tokens.",
                ),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="model", tooltip="The tuned model."),
                io.Clip.Output("clip_out", display_name="clip", tooltip="The text encoder with the tokens: its prompts can name them."),
                TokensType.Output("tokens", display_name="tokens", tooltip="The concept's tokens, for nodes that adjust or measure them."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name, **_) -> str:
        from ..host import paths

        return paths.concept_fingerprint(name)

    @classmethod
    def execute(cls, model: Model, clip: Clip, name, strength) -> io.NodeOutput:
        from ..formats import concept_file
        from ..host import paths, text
        from ..host.layer_names import convert_for
        from ..host.lora import load_lora

        lora, tokens = concept_file.load(paths.find_concept(name), text.embedding_widths(clip), paths.find_embedding, convert_for(model))
        loaded = load_lora(model, clip, lora, strength)
        tuned_clip = text.carry_tokens(loaded.clip, tokens) if tokens else loaded.clip
        replaced = text.replaced_tokens(clip, tokens)
        for sentence in replaced:
            log.warning("Load Concept %r: %s", name, sentence)
        notes = [*loaded.report(), *replaced, *(note for token in tokens for note in token.notes)]
        return io.NodeOutput(loaded.model, tuned_clip, tokens, ui=ui.PreviewText("\n".join(notes)))


NODES = [KindredSave, KindredLoad]

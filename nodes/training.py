"""Train Concept: learn subjects without forgetting what they are."""

from comfy_api.latest import io

from ..host.types import Clip, Model, Vae
from . import training_inputs as inputs
from .concept import CATEGORY, ConceptType

TokensType = io.Custom("KINDRED_TOKENS")
LoraModelType = io.Custom("LORA_MODEL")
LossMapType = io.Custom("LOSS_MAP")
OptionsType = io.Custom("KINDRED_OPTIONS")


class KindredTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KindredTrain",
            display_name="Train Concept",
            category=CATEGORY,
            description="Learns one or more subjects from photos and keeps each close to its class with the Semantic Preservation Loss (ClassDiffusion, ICLR 2025). Trains cross-attention K and V with a token, a LoRA with or without a token, or a token alone. Can be stopped and continued.",
            search_aliases=[
                *["lora training", "train lora", "lora trainer", "dreambooth", "custom diffusion", "classdiffusion", "textual inversion", "fine-tune"],
                *["character", "character lora", "product photo", "style", "style lora", "likeness", "semantic preservation loss", "personalization"],
            ],
            inputs=[
                io.Model.Input("model", tooltip="The base model. It is not changed; the output carries the training result as a patch."),
                io.Clip.Input("clip", tooltip="The text encoder. It is not changed; the output carries the tokens."),
                io.Vae.Input("vae", tooltip="Encodes the photos into latents."),
                io.Autogrow.Input(
                    "concepts",
                    io.Autogrow.TemplatePrefix(
                        ConceptType.Input("concept", tooltip="A Concept node. Connect one and another input appears: several subjects are learned together."),
                        prefix="concept_",
                        min=1,
                        max=10,
                    ),
                    tooltip="The subjects to learn.",
                ),
                *inputs.train_inputs(),
                OptionsType.Input(
                    "options", optional=True, tooltip="A Training Options node, with everything that is seldom changed. Without it, its defaults hold."
                ),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="model", tooltip="The trained model."),
                io.Clip.Output("clip_out", display_name="clip", tooltip="The text encoder with the tokens: its prompts can name them."),
                LoraModelType.Output("lora", display_name="lora", tooltip="The training result of the model: for Save Concept, and for core's LoRA nodes."),
                TokensType.Output("tokens", display_name="tokens", tooltip="The trained tokens: for Save Concept."),
                LossMapType.Output("loss", display_name="loss", tooltip="The losses of every step, for core's Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            accept_all_inputs=True,  # prompts in API form of earlier versions have all settings here; the host would drop them without a word
        )

    @classmethod
    def execute(cls, model: Model, clip: Clip, vae: Vae, concepts, method, options=None, **given) -> io.NodeOutput:
        from ..host.lora import apply_lora
        from ..host.loss_map import loss_map
        from ..host.paths import run_folder
        from ..host.progress import TrainingProgress
        from ..host.text import carry_tokens
        from ..training.advice import hints, idle
        from ..training.settings import from_inputs
        from ..training.trainer import Keeping, run_name, train
        from ..training.watching import make_watch

        concepts = list(concepts.values())
        settings, watch, keep = from_inputs(inputs.collect(method, given, options))
        with TrainingProgress(cls.hidden.unique_id, settings.steps, [concept.token for concept in concepts], cls.hidden.extra_pnginfo) as progress:
            for sentence in (*idle(settings), *hints(clip, concepts)):
                progress.hint(sentence)
            keeping = Keeping(run_folder(), keep.run_name or run_name(concepts), keep.save_every, keep.resume, progress.warn, keep.keep_steps)
            watching = make_watch(watch, progress.preview, progress.mark, progress.warn)
            result = train(model, clip, vae, concepts, settings, progress.step, progress.encoding, keeping, on_restore=progress.restored, watch=watching)
        tuned, tuned_clip = apply_lora(model, clip, result.lora)
        return io.NodeOutput(
            tuned,
            carry_tokens(tuned_clip, result.tokens) if result.tokens else tuned_clip,
            result.lora,
            result.tokens,
            loss_map(loss=[step.loss for step in result.history], spl=[step.spl for step in result.history]),
        )


class KindredTrainingOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KindredTrainingOptions",
            display_name="Training Options",
            category=CATEGORY,
            description="The settings of Train Concept that are seldom changed: photos, optimizer, losses, previews, saved states, token and adapter. Connect it to options of Train Concept; one node can serve several.",
            search_aliases=["training settings", "advanced training", "optimizer", "lr scheduler", "gradient checkpointing", "batch size", "network alpha"],
            inputs=inputs.option_inputs(),
            outputs=[OptionsType.Output("options", display_name="options", tooltip="For options of Train Concept.")],
        )

    @classmethod
    def execute(cls, **given) -> io.NodeOutput:
        from ..training.settings import read_values

        return io.NodeOutput(read_values({name: value for name, value in given.items() if value is not None}))


NODES = [KindredTrain, KindredTrainingOptions]

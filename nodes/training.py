"""Train Concept: learn subjects without forgetting what they are."""

from comfy_api.latest import io

from ..host.types import Clip, Model, Vae
from . import training_inputs as inputs
from .concept import CATEGORY, ConceptType

TokensType = io.Custom("KINDRED_TOKENS")
LoraModelType = io.Custom("LORA_MODEL")
LossMapType = io.Custom("LOSS_MAP")


class KindredTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KindredTrain",
            display_name="Train Concept",
            category=CATEGORY,
            description="Learns one or more subjects from photos and keeps each close to its class with the Semantic Preservation Loss (ClassDiffusion, ICLR 2025). Trains cross-attention K and V with a token, a LoRA with or without a token, or a token alone. Can be stopped and continued.",
            search_aliases=["train lora", "classdiffusion", "custom diffusion", "dreambooth", "textual inversion", "semantic preservation loss", "fine-tune"],
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
                *inputs.inputs(),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="model", tooltip="The trained model."),
                io.Clip.Output("clip_out", display_name="clip", tooltip="The text encoder with the tokens: its prompts can name them."),
                LoraModelType.Output("lora", display_name="lora", tooltip="The training result of the model: for Save Concept, and for core's LoRA nodes."),
                TokensType.Output("tokens", display_name="tokens", tooltip="The trained tokens: for Save Concept."),
                LossMapType.Output("loss", display_name="loss", tooltip="The losses of every step, for core's Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, model: Model, clip: Clip, vae: Vae, concepts, method, **settings) -> io.NodeOutput:
        from ..host.lora import apply_lora
        from ..host.loss_map import loss_map
        from ..host.paths import run_folder
        from ..host.progress import TrainingProgress
        from ..host.text import carry_tokens
        from ..training.advice import hints
        from ..training.settings import from_inputs
        from ..training.trainer import Keeping, run_name, train
        from ..training.watching import make_watch

        concepts = list(concepts.values())
        given = {name: value for name, value in {**method, **settings}.items() if value is not None}  # a method's optional input that is left out is None
        settings, watch, keep = from_inputs(given)
        with TrainingProgress(cls.hidden.unique_id, settings.steps, [concept.token for concept in concepts], cls.hidden.extra_pnginfo) as progress:
            for sentence in hints(clip, concepts):
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


NODES = [KindredTrain]

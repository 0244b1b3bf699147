"""Train Concept: learn subjects without losing their kind."""

from comfy_api.latest import io

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
            description="Learns one or more subjects from their photos: cross-attention K and V and one token each (Custom Diffusion), held to their kind by the Semantic Preservation Loss (ClassDiffusion, ICLR 2025).",
            search_aliases=["train lora", "classdiffusion", "custom diffusion", "dreambooth", "textual inversion", "semantic preservation loss", "fine-tune"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to learn on (Stable Diffusion 1.x, 2.x or SDXL). It stays as it is; what was learned is a patch on the output."
                ),
                io.Clip.Input("clip", tooltip="Its text encoder. It stays as it is; the output carries the tokens."),
                io.Vae.Input("vae", tooltip="Turns the photos into latents, once, before the first step."),
                io.Autogrow.Input(
                    "concepts",
                    io.Autogrow.TemplatePrefix(
                        ConceptType.Input(
                            "concept", tooltip="A Concept node. Connect one and a place for another appears: several subjects are learned together."
                        ),
                        prefix="concept_",
                        min=1,
                        max=10,
                    ),
                    tooltip="The subjects to learn.",
                ),
                io.DynamicCombo.Input(
                    "method",
                    options=[
                        io.DynamicCombo.Option(
                            "kv + token",
                            [
                                io.Float.Input(
                                    "token_learning_rate",
                                    default=0.0,
                                    min=0.0,
                                    max=1.0,
                                    step=1e-6,
                                    round=1e-8,
                                    optional=True,
                                    advanced=True,
                                    tooltip="AdamW's step size for the tokens' vectors. 0 = the same as learning_rate.",
                                ),
                            ],
                        ),
                    ],
                    tooltip="What is learned. kv + token: the K and V projections of every cross-attention and one vector for each token and text encoder (Custom Diffusion, ClassDiffusion).",
                ),
                io.Float.Input(
                    "spl_weight",
                    default=1.0,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    tooltip="Weight of the Semantic Preservation Loss, which holds the token to its kind. 0 = plain Custom Diffusion. The paper finds 0.01 to 100 nearly alike.",
                ),
                io.Float.Input(
                    "prior_weight",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="Weight of the loss on the concepts' prior images. Without prior images it does nothing.",
                ),
                io.Int.Input("steps", default=500, min=1, max=100000, tooltip="The papers take 500 for one subject and 800 for several."),
                io.Int.Input("batch_size", default=2, min=1, max=64, tooltip="Photos in each step. Prior images come on top."),
                io.Float.Input(
                    "learning_rate",
                    default=2e-5,
                    min=1e-8,
                    max=1.0,
                    step=1e-6,
                    round=1e-8,
                    tooltip="AdamW's step size. 2e-5 is the paper's code (1e-5 times its batch of 2).",
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Side of the square training picture in pixels: 512 for SD 1.5, 768 for SD 2.x, 1024 for SDXL.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="The same seed, photos and settings give the same result.",
                ),
                io.Boolean.Input(
                    "augment",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Show the subject at different sizes and places, with prompts that say so (Custom Diffusion's augmentation).",
                ),
                io.Boolean.Input(
                    "flip",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Mirror half of the pictures. Turn it off for subjects with writing or one-sided marks.",
                ),
                io.Float.Input("weight_decay", default=0.01, min=0.0, max=1.0, step=0.001, optional=True, advanced=True, tooltip="AdamW's weight decay."),
                io.Float.Input(
                    "clip_norm",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    optional=True,
                    advanced=True,
                    tooltip="Gradients longer than this are shortened to it. 0 = never.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", "fp32", "bf16", "fp16"],
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="Of the forward pass; what is learned is kept in fp32. auto: bf16 where the card has it, fp16 with loss scaling on older ones, fp32 on a processor.",
                ),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="model", tooltip="The model with what was learned."),
                io.Clip.Output("clip_out", display_name="clip", tooltip="The text encoder whose prompts may name the tokens."),
                LoraModelType.Output("lora", display_name="lora", tooltip="What was learned on the model: for Save Concept, and for core's LoRA nodes."),
                TokensType.Output("tokens", display_name="tokens", tooltip="What was learned for the text encoder: for Save Concept."),
                LossMapType.Output("loss", display_name="loss", tooltip="The losses of every step, for core's Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, clip, vae, concepts, method, **settings) -> io.NodeOutput:
        from ..host.lora import apply_lora
        from ..host.progress import TrainingProgress
        from ..host.text import carry_tokens
        from ..training.trainer import TrainSettings, train

        settings = TrainSettings(**settings, token_learning_rate=method.get("token_learning_rate") or 0.0)
        progress = TrainingProgress(cls.hidden.unique_id, settings.steps)
        result = train(model, clip, vae, list(concepts.values()), settings, on_step=progress.step, on_encode=progress.encoding)
        tuned, _ = apply_lora(model, None, result.lora)
        return io.NodeOutput(
            tuned,
            carry_tokens(clip, result.tokens),
            result.lora,
            result.tokens,
            {"loss": [step.loss for step in result.history], "spl": [step.spl for step in result.history]},
        )


NODES = [KindredTrain]

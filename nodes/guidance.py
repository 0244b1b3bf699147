"""Draw: Personalization Guidance as a guider, and as a patch for everybody else's."""

from comfy_api.latest import io

from ..host.types import Clip, Conditioning, Model
from . import guidance_inputs as inputs


class KindredPersonalizationGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KindredPersonalizationGuidance",
            display_name="Personalization Guidance (Model Patch)",
            category=inputs.CATEGORY,
            description="Guides away from the weights between base and fine-tuned model, at the cost of plain CFG. For any sampler or guider: connect the result as its model.",
            search_aliases=inputs.ALIASES,
            inputs=[*inputs.pair(), inputs.omega(), *inputs.course()],
            outputs=[io.Model.Output(tooltip="The tuned model. Its negative side is predicted by the weak weights.")],
        )

    @classmethod
    def execute(cls, model: Model, base_model: Model, omega, **course) -> io.NodeOutput:
        from ..guidance.guider import personalize

        return io.NodeOutput(personalize(model, base_model, inputs.schedule(omega, **course)))


class KindredGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        from ..guidance import modes

        return io.Schema(
            node_id="KindredGuider",
            display_name="Personalization Guider",
            category=inputs.CATEGORY,
            description="Personalization Guidance for SamplerCustomAdvanced: the weak model is the weights between base and fine-tuned at omega, on the negative prompt, at the cost of plain CFG.",
            search_aliases=inputs.ALIASES,
            inputs=[
                *inputs.pair(),
                io.Conditioning.Input("positive", tooltip="What the image shows."),
                io.Conditioning.Input("negative", optional=True, tooltip=inputs.NEGATIVE + " It must be connected."),
                io.Float.Input("cfg", default=7.5, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=inputs.CFG),
                inputs.omega(),
                io.Combo.Input("mode", options=list(modes.MODES), default=modes.DEFAULT, optional=True, advanced=True, tooltip=modes.tooltip()),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Strength of the third prediction, in the modes that make three a step; unused otherwise.",
                ),
                *inputs.course(),
                io.Conditioning.Input(
                    "subject_agnostic",
                    optional=True,
                    tooltip="The modes subject-agnostic: the prompt without the subject's token, for example with its class word.",
                ),
                *inputs.subject_agnostic(),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        model: Model,
        base_model: Model,
        positive: Conditioning,
        cfg,
        omega,
        mode="personalization",
        scale=1.0,
        negative: Conditioning | None = None,
        subject_agnostic: Conditioning | None = None,
        agnostic_until=0.9,
        agnostic_weight=0.0,
        **course,
    ) -> io.NodeOutput:
        from ..guidance.guider import make_guider

        agnostic = {"subject_agnostic": subject_agnostic, "agnostic_until": agnostic_until, "agnostic_weight": agnostic_weight}
        return io.NodeOutput(make_guider(model, base_model, positive, negative, cfg, inputs.schedule(omega, **course), mode, scale=scale, **agnostic))


class KindredNegativePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KindredNegativePrompt",
            display_name="Negative Prompt (Personalization Guidance)",
            category=inputs.CATEGORY,
            description="A negative prompt for models whose text encoder was tuned, too: guidance encodes it by the text encoder between base and tuned at its own omega, as the paper's formula asks. Elsewhere it is an ordinary negative prompt.",
            search_aliases=["personalization guidance", "null prompt", "empty prompt", "negative", "CLIP text encode"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder after tuning: with the LoRA, or of Load Concept or Train Concept."),
                io.Clip.Input("base_clip", tooltip="The same text encoder before tuning: of the checkpoint."),
                io.String.Input("text", default="", multiline=True, tooltip="What to guide away from. Empty is the papers' choice."),
            ],
            outputs=[io.Conditioning.Output("negative", display_name="negative", tooltip="For the negative input of a sampler or guider.")],
        )

    @classmethod
    def execute(cls, clip: Clip, base_clip: Clip, text) -> io.NodeOutput:
        from ..guidance import null_prompt

        return io.NodeOutput(null_prompt.encode(clip, base_clip, text))


NODES = [KindredNegativePrompt, KindredGuider, KindredPersonalizationGuidance]

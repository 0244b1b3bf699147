"""Conditioning SLERP, Token SLERP, Text Encode Concept: saying it without semantic collapse (Test-time Embedding Adjustment)."""

from comfy_api.latest import io, ui

from ..host.types import Clip, Conditioning
from .concept import CATEGORY
from .training import TokensType


def _adjustment() -> list[io.Input]:
    return [
        io.Float.Input(
            "alpha",
            default=0.2,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How far to rotate toward the class: 0 not at all, 1 all the way. More keeps more of the prompt and less of the subject's "
            "likeness. The paper uses 0.2, and 0.1 for DreamBooth.",
        ),
        io.Float.Input(
            "beta",
            default=0.5,
            min=0.0,
            max=4.0,
            step=0.01,
            tooltip="Length after the rotation. midpoint: 0 keeps the concept's own, 1 takes the class's. class: a multiple of the class's length (1 = equal), up to 4.",
        ),
    ]


def _norm(advanced: bool = True, optional: bool = False) -> io.Input:
    return io.Combo.Input(
        "norm",
        options=["midpoint", "class"],
        default="midpoint",
        advanced=advanced,
        optional=optional,
        tooltip="How beta sets the length: midpoint = (1-beta) x own + beta x class (the authors' code), class = beta x class (the paper's formula).",
    )


def _range() -> list[io.Input]:
    return [
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            advanced=True,
            optional=True,
            tooltip="Adjust from this share of sampling on; before it the prompt is unchanged.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            advanced=True,
            optional=True,
            tooltip="Adjust up to this share of sampling; after it the prompt is unchanged. Early steps lay out the scene, late ones the likeness.",
        ),
    ]


class KindredConditioningSLERP(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KindredConditioningSLERP",
            display_name="Conditioning SLERP (TEA)",
            category=CATEGORY,
            description="Rotates a prompt that names your concept toward the same prompt with the plain class word, row by row, so that the model follows the "
            "rest of the prompt again. No training.",
            search_aliases=["slerp", "TEA", "test-time embedding adjustment", "semantic collapse", "conditioning blend", "prompt ignored"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The prompt with your concept. Areas, masks, hooks and ControlNets stay attached."),
                io.Conditioning.Input("class_conditioning", tooltip="The same prompt with the class word in place of the token, or without the token."),
                *_adjustment(),
                _norm(advanced=False),
                io.Combo.Input(
                    "align",
                    options=["position", "token"],
                    default="position",
                    tooltip="position: row by row as in the paper, for prompts with the same number of tokens. token: each word is paired with the same "
                    "word, for prompts where the token was inserted; needs clip and both texts below.",
                ),
                *_range(),
                io.Clip.Input("clip", optional=True, tooltip="For align = token: the text encoder that carries the concept's token."),
                io.String.Input(
                    "text",
                    optional=True,
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip="For align = token: the prompt of conditioning, exactly as it was encoded.",
                ),
                io.String.Input(
                    "class_text",
                    optional=True,
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip="For align = token: the prompt of class_conditioning. Empty: text without its tokens.",
                ),
            ],
            outputs=[io.Conditioning.Output("conditioning_out", display_name="conditioning", tooltip="The adjusted prompt.")],
        )

    @classmethod
    def execute(
        cls,
        conditioning: Conditioning,
        class_conditioning: Conditioning,
        alpha,
        beta,
        norm,
        align,
        start_percent=0.0,
        end_percent=1.0,
        clip: Clip | None = None,
        text="",
        class_text="",
    ) -> io.NodeOutput:
        from ..embedding.conditioning import adjust_conditioning
        from ..embedding.prompt import text_partners

        partners = text_partners(clip, text, class_text) if align == "token" else None
        return io.NodeOutput(adjust_conditioning(conditioning, class_conditioning, alpha, beta, norm, partners, start_percent, end_percent))


class KindredTokenSLERP(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KindredTokenSLERP",
            display_name="Token SLERP (TEA)",
            category=CATEGORY,
            description="Rotates a learned token toward its class word, in every text encoder that has it. For tokens of Train Concept, "
            "Load Concept and any textual-inversion file (embedding:name).",
            search_aliases=["slerp", "TEA", "test-time embedding adjustment", "textual inversion", "embedding"],
            inputs=[
                io.Clip.Input("clip", tooltip="A text encoder that carries the token, or any one for embedding:name. It is not changed; the output is a copy."),
                io.String.Input(
                    "token",
                    default="<v1>",
                    tooltip="As prompts write it; several separated by commas. embedding:name takes a file from models/embeddings. Empty: every token "
                    "that the clip carries.",
                ),
                io.String.Input(
                    "class_word",
                    default="",
                    tooltip="The class of the subject, for example dog. Empty: the word the token was trained with. Several, separated by commas, for "
                    "several tokens.",
                ),
                *_adjustment(),
                _norm(),
                TokensType.Input("tokens", optional=True, tooltip="Tokens to add to the clip first, from Train Concept or Load Concept."),
            ],
            outputs=[
                io.Clip.Output("clip_out", display_name="clip", tooltip="A copy with the adjusted tokens."),
                TokensType.Output("tokens_out", display_name="tokens", tooltip="The adjusted tokens, for example for Save Concept."),
            ],
        )

    @classmethod
    def execute(cls, clip: Clip, token, class_word, alpha, beta, norm="midpoint", tokens=None) -> io.NodeOutput:
        from ..embedding.carried import adjust_clip
        from ..host.text import carry_tokens

        return io.NodeOutput(*adjust_clip(carry_tokens(clip, tokens) if tokens else clip, token, class_word, alpha, beta, norm))


class KindredTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KindredTextEncode",
            display_name="Text Encode Concept (TEA)",
            category=CATEGORY,
            description="Encodes a prompt that names your concept, builds the class prompt by itself and rotates the first toward the second, so that "
            "the subject does not crowd out the scene you describe.",
            search_aliases=["clip text encode", "prompt", "slerp", "TEA", "semantic collapse", "prompt ignored", "prompt adherence", "overfitting"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that carries the token, from Train Concept or Load Concept."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="a photo of a <v1> dog on the beach",
                    tooltip="The prompt with the concept's token. The class prompt is this text with the class word in its place.",
                ),
                *_adjustment(),
                io.Boolean.Input(
                    "auto_alpha",
                    default=False,
                    optional=True,
                    tooltip="Choose alpha for this prompt: the smallest one that keeps the share of the scene set in keep. The value is shown on "
                    "the node; alpha above is ignored.",
                ),
                io.Clip.Input(
                    "class_clip",
                    optional=True,
                    tooltip="Encodes the class prompt. Empty: the concept's own text encoder, as in the paper. The base model's is the steadier anchor if the concept's own was trained (AdaptSP).",
                ),
                TokensType.Input("tokens", optional=True, tooltip="Tokens to add to the clip first. Not needed if the clip carries them."),
                io.Float.Input(
                    "keep",
                    default=0.8,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    optional=True,
                    tooltip="For auto_alpha: the share of the scene's effect on a plain class prompt that this prompt must keep. 1 = all of it.",
                ),
                _norm(optional=True),
                io.Combo.Input(
                    "align",
                    options=["token", "position"],
                    default="token",
                    advanced=True,
                    optional=True,
                    tooltip="token: each word is paired with the same word in the class prompt; the token in front of its class word has no partner and stays. position: row by row, as in the paper.",
                ),
                *_range(),
            ],
            outputs=[
                io.Conditioning.Output("conditioning", display_name="conditioning", tooltip="The adjusted prompt, for a sampler."),
                io.Conditioning.Output("class_conditioning", display_name="class_conditioning", tooltip="The class prompt, for comparison."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        clip: Clip,
        text,
        alpha,
        beta,
        auto_alpha=False,
        class_clip: Clip | None = None,
        tokens=None,
        keep=0.8,
        norm="midpoint",
        align="token",
        start_percent=0.0,
        end_percent=1.0,
    ) -> io.NodeOutput:
        from ..embedding.prompt import encode_concept
        from ..host.prompt import show_on_node
        from ..host.text import carry_tokens

        done = encode_concept(
            carry_tokens(clip, tokens) if tokens else clip,
            text,
            class_clip=class_clip,
            alpha=None if auto_alpha else alpha,
            beta=beta,
            norm=norm,
            align=align,
            keep=keep,
            start=start_percent,
            end=end_percent,
        )
        line = done.describe()
        show_on_node(cls.hidden.unique_id, line)
        return io.NodeOutput(done.conditioning, done.class_conditioning, ui=ui.PreviewText(line))


NODES = [KindredConditioningSLERP, KindredTokenSLERP, KindredTextEncode]

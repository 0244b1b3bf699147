"""Semantic Drift: how far a learned token has left its class, and what TEA does about it."""

from comfy_api.latest import io, ui

from .concept import CATEGORY


class KindredDrift(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KindredDrift",
            display_name="Semantic Drift",
            category=CATEGORY,
            description="Measures how far a token's meaning has drifted from its class word, in numbers and as a picture, before and after the two "
            "adjustments. Reads the text encoder only: no image is made.",
            search_aliases=["semantic collapse", "language drift", "token norm", "embedding analysis", "evaluate token"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that carries the token."),
                io.String.Input(
                    "token",
                    default="<v1>",
                    tooltip="As prompts write it; several separated by commas. Also embedding:name, or a plain word such as sks whose meaning was trained.",
                ),
                io.String.Input("class_word", default="", tooltip="The kind of the subject, for example dog. Empty: what the token was trained with."),
                io.Clip.Input(
                    "base_clip", optional=True, tooltip="Encodes the prompts with the class word. Connect the base model's where the text encoder was trained."
                ),
                io.String.Input(
                    "prompts",
                    optional=True,
                    default="",
                    multiline=True,
                    tooltip="Your own scenes, one a line, with {} where the subject stands. Empty: the forty of the pack.",
                ),
                io.Float.Input(
                    "alpha", optional=True, default=0.2, min=0.0, max=1.0, step=0.01, advanced=True, tooltip="Rotation of the adjustments that are shown."
                ),
                io.Float.Input(
                    "beta", optional=True, default=0.5, min=0.0, max=1.0, step=0.01, advanced=True, tooltip="Length of the adjustments that are shown."
                ),
                io.Combo.Input(
                    "norm",
                    options=["midpoint", "class"],
                    default="midpoint",
                    optional=True,
                    advanced=True,
                    tooltip="How beta gives the length, as in Token SLERP.",
                ),
                io.Boolean.Input(
                    "with_class",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="On: the subject reads '<v1> dog'. Off: '<v1>' alone, for embeddings that were trained to stand for the whole subject.",
                ),
                io.Float.Input(
                    "temperature",
                    optional=True,
                    default=0.1,
                    min=0.01,
                    max=10.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Of the KL measure; smaller looks at the nearest prompts only.",
                ),
                io.Combo.Input("theme", options=["dark", "light"], default="dark", optional=True, advanced=True, tooltip="Colours of the plot."),
            ],
            outputs=[
                io.String.Output("report", display_name="report", tooltip="The numbers in words."),
                io.Image.Output("plot", display_name="plot", tooltip="One picture for each token."),
            ],
        )

    @classmethod
    def execute(
        cls, clip, token, class_word, base_clip=None, prompts="", alpha=0.2, beta=0.5, norm="midpoint", with_class=True, temperature=0.1, theme="dark"
    ) -> io.NodeOutput:
        from ..evaluation.drift_plot import plots
        from ..evaluation.drift_report import report
        from ..evaluation.measure import measure_all

        found = measure_all(clip, token, class_word, base_clip, prompts, alpha=alpha, beta=beta, norm=norm, with_class=with_class, temperature=temperature)
        text = "\n\n".join(map(report, found))
        return io.NodeOutput(text, plots(found, theme), ui=ui.PreviewText(text))


NODES = [KindredDrift]

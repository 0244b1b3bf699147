"""Semantic Drift: how far a learned token has left its class, and what TEA does about it. Evaluate Pictures: do they show the subject, and the prompt?"""

from comfy_api.latest import io, ui

from ..host.types import Clip
from .concept import CATEGORY


class KindredDrift(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KindredDrift",
            display_name="Semantic Drift",
            category=CATEGORY,
            description="Measures how far a token's meaning has drifted from its class word, in numbers and as a plot, before and after the two "
            "adjustments. Uses the text encoder only: no image is drawn.",
            search_aliases=["semantic collapse", "language drift", "token norm", "embedding analysis", "evaluate token"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that carries the token."),
                io.String.Input(
                    "token",
                    default="<v1>",
                    tooltip="As prompts write it; several separated by commas. Also embedding:name, or a plain word such as sks whose meaning was trained.",
                ),
                io.String.Input("class_word", default="", tooltip="The class of the subject, for example dog. Empty: the word the token was trained with."),
                io.Clip.Input(
                    "base_clip", optional=True, tooltip="Encodes the prompts with the class word. Connect the base model's if the text encoder was trained."
                ),
                io.String.Input(
                    "prompts",
                    optional=True,
                    default="",
                    multiline=True,
                    tooltip="Your own scenes, one a line, with {} for the subject. Empty: the pack's forty scenes.",
                ),
                io.Float.Input("alpha", optional=True, default=0.2, min=0.0, max=1.0, step=0.01, advanced=True, tooltip="Rotation of the two adjustments."),
                io.Float.Input("beta", optional=True, default=0.5, min=0.0, max=1.0, step=0.01, advanced=True, tooltip="Length of the two adjustments."),
                io.Combo.Input(
                    "norm",
                    options=["midpoint", "class"],
                    default="midpoint",
                    optional=True,
                    advanced=True,
                    tooltip="How beta sets the length, as in Token SLERP.",
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
                    tooltip="Temperature of the KL measure; lower values weigh the nearest prompts more.",
                ),
                io.Combo.Input("theme", options=["dark", "light"], default="dark", optional=True, advanced=True, tooltip="Colours of the plot."),
            ],
            outputs=[
                io.String.Output("report", display_name="report", tooltip="The numbers as text."),
                io.Image.Output("plot", display_name="plot", tooltip="One plot for each token."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: Clip,
        token,
        class_word,
        base_clip: Clip | None = None,
        prompts="",
        alpha=0.2,
        beta=0.5,
        norm="midpoint",
        with_class=True,
        temperature=0.1,
        theme="dark",
    ) -> io.NodeOutput:
        from ..evaluation.drift_plot import plots
        from ..evaluation.drift_report import report
        from ..evaluation.measure import measure_all

        found = measure_all(clip, token, class_word, base_clip, prompts, alpha=alpha, beta=beta, norm=norm, with_class=with_class, temperature=temperature)
        text = "\n\n".join(map(report, found))
        return io.NodeOutput(text, plots(found, theme), ui=ui.PreviewText(text))


class KindredEvaluate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..evaluation.scorers import MODELS, folders

        first = ("clip", "dino", "blip2")  # saved workflows keep values by position: later models come after `theme`

        def model(name: str):
            one = MODELS[name]
            return io.Combo.Input(
                name,
                options=["none", *folders(name)],
                default="none",
                optional=True,
                tooltip=f"For {' and '.join(one.measures)}: {one.what} of yours, as a folder in models/evaluation with config.json, model.safetensors and the rest, as transformers saves it. Nothing is downloaded. Press R to refresh the list.",
            )

        return io.Schema(
            node_id="KindredEvaluate",
            display_name="Evaluate Pictures",
            category=CATEGORY,
            description="Scores generated pictures as the papers do: do they show what the prompt says (prompt fidelity), and do they show the subject of the photos (subject fidelity)? With confidence intervals.",
            search_aliases=["clip score", "clip-t", "clip-i", "dino score", "blip2", "benchmark", "subject fidelity", "metrics"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="The generated pictures, as a batch or a list."),
                io.Image.Input("references", tooltip="Photos of the subject, for example from Load Photos. Every picture is compared with every photo."),
                io.String.Input(
                    "prompts",
                    default="a photo of a <v1> dog",
                    multiline=True,
                    tooltip="The pictures' prompts: one for all, or one line for each picture in order.",
                ),
                io.String.Input(
                    "token", default="<v1>", tooltip="The subject's token in the prompts. It is replaced by the class word, since no scoring model knows it."
                ),
                io.String.Input("class_word", default="dog", tooltip="The class of the subject, which replaces the token."),
                *(model(name) for name in first),
                io.Combo.Input("theme", options=["dark", "light"], default="dark", optional=True, advanced=True, tooltip="Colors of the plot."),
                *(model(name) for name in MODELS if name not in first),
            ],
            outputs=[
                io.String.Output("table", display_name="table", tooltip="Mean and 95% interval of each measure, and the means of each prompt."),
                io.Image.Output("plot", display_name="plot", tooltip="Every picture's score, the mean, and the lowest and highest picture."),
            ],
        )

    @classmethod
    def execute(cls, images, references, prompts, token, class_word, theme=("dark",), **models) -> io.NodeOutput:
        from ..evaluation import scorers, scores, scores_plot
        from ..host import scoring

        chosen = {name: scoring.model_folder(folder) for name, (folder, *_) in models.items() if folder != "none"}
        if not chosen:
            raise ValueError(
                f"No scoring model is chosen. Put the folder of one ({', '.join(one.what for one in scorers.MODELS.values())}) into models/evaluation, press R to refresh the lists, and choose it. ({scoring.root()})"
            )
        scoring.make_room()
        chosen_scorers = scorers.load(chosen, scoring.device())
        report = scores.score(images, references, "\n".join(prompts), chosen_scorers, token[0], class_word[0])
        text = report.text()
        return io.NodeOutput(text, scores_plot.plot(report, scores.together(images, "images"), theme[0]), ui=ui.PreviewText(text))


NODES = [KindredDrift, KindredEvaluate]

"""Draw: Personalization Guidance as a guider, as core's two samplers, and as a patch for everybody else's."""

from comfy_api.latest import io

from ..host.types import Conditioning, Model

CATEGORY = "personalization"
ALIASES = [
    *["personalization guidance", "steering guidance", "weak model guidance", "autoguidance", "dreambooth guidance", "lora guidance", "cfg", "PG"],
    *["likeness", "overfitting", "overfit lora"],
]

_MODEL = "The tuned model: with the LoRA, the trained concept, or a fine-tuned checkpoint."
_BASE = "The model before tuning: the same checkpoint without the LoRA (costs no memory), or the checkpoint that a full fine-tune started from."
_OMEGA = (
    "How much of the tuning the weak model keeps. 0: guidance away from the base model, closest to the subject. 1: plain CFG, closest to the prompt. "
    "0 to 0.3 favours the subject, 0.4 to 0.6 balances."
)
_CFG = "Guidance scale, as in any sampler. 1 turns guidance off and halves the time."
_CORE = {  # what core's own nodes leave unsaid
    "add_noise": "enable: start with noise from noise_seed. disable: the latent already has the previous sampler's noise.",
    "noise_seed": "The random seed of the noise.",
    "seed": "The random seed of the noise.",
    "steps": "Steps of the whole way from noise to image, all parts together.",
    "cfg": _CFG,
    "sampler_name": "The algorithm that goes from noise to image.",
    "scheduler": "How the noise levels are spread over the steps.",
    "positive": "What the picture shows: the prompt with your token.",
    "latent_image": "The latent to denoise.",
    "start_at_step": "The first step of this part.",
    "end_at_step": "The step at which this part ends; a number beyond `steps` means the last.",
    "return_with_leftover_noise": "enable: return the latent with its noise, for the next part. disable: finish it in the last step.",
    "denoise": "1 draws anew; lower values keep more of the given latent.",
}
_NEGATIVE = "What to guide away from: usually an empty prompt. If the text encoder was tuned too, encode it with the base CLIP."


def _pair() -> list:
    return [io.Model.Input("model", tooltip=_MODEL), io.Model.Input("base_model", tooltip=_BASE)]


def _omega() -> io.Float.Input:
    return io.Float.Input("omega", default=0.6, min=0.0, max=1.0, step=0.05, round=0.001, tooltip=_OMEGA)


def _course() -> list:
    """omega over time and the guidance interval."""
    from ..guidance.schedule import CURVES

    return [
        io.Float.Input(
            "omega_end",
            default=0.6,
            min=0.0,
            max=1.0,
            step=0.05,
            round=0.001,
            optional=True,
            advanced=True,
            tooltip="omega at the last step, if `omega_curve` is not constant.",
        ),
        io.Combo.Input(
            "omega_curve",
            options=[*CURVES, "curve"],
            default="constant",
            optional=True,
            advanced=True,
            tooltip="How omega changes from `omega` to `omega_end` over sampling. constant: as in the paper. curve: uses the curve below.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            optional=True,
            advanced=True,
            tooltip="Guidance starts at this share of sampling. Before it only the positive prompt runs, in half the time a step.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            optional=True,
            advanced=True,
            tooltip="Guidance ends at this share of sampling. After it only the positive prompt runs, in half the time a step.",
        ),
        *_drawn_curve(),
    ]


def _drawn_curve() -> list:
    """Left out where the host has none: in 0.18 its page opens no node that has one."""
    from ..host import sampling

    if not sampling.has_curves():
        return []
    tooltip = "Used if `omega_curve` is curve. Horizontal: sampling from noise to image. Vertical: from `omega` to `omega_end`."
    return [io.Curve.Input("curve", optional=True, socketless=False, advanced=True, tooltip=tooltip)]


def _schedule(omega, omega_end=None, omega_curve="constant", start_percent=0.0, end_percent=1.0, curve=None):
    from ..guidance.schedule import Schedule
    from ..host import sampling

    if omega_curve == "curve":
        if curve is None and sampling.has_curves():
            raise ValueError("`omega_curve` is curve, and `curve` is not given: draw one on the node, or connect a Curve Editor.")
        omega_curve = sampling.curve_function(curve)
    return Schedule(omega, omega_end, omega_curve, start_percent, end_percent)


def _core_inputs(node: str, names: list[str]) -> list:
    """Core KSampler's own inputs, as this host defines them."""
    from ..host import sampling

    return [sampling.core_input(node, name, {**_CORE, "negative": _NEGATIVE}.get(name)) for name in names]


class KindredPersonalizationGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KindredPersonalizationGuidance",
            display_name="Personalization Guidance (Model Patch)",
            category=CATEGORY,
            description="Guides away from the weights between base and fine-tuned model, at the cost of plain CFG. For any sampler or guider: connect the result as its model.",
            search_aliases=ALIASES,
            inputs=[*_pair(), _omega(), *_course()],
            outputs=[io.Model.Output(tooltip="The tuned model. Its negative side is predicted by the weak weights.")],
        )

    @classmethod
    def execute(cls, model: Model, base_model: Model, omega, **course) -> io.NodeOutput:
        from ..guidance.guider import personalize

        return io.NodeOutput(personalize(model, base_model, _schedule(omega, **course)))


class KindredGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        from ..guidance import modes

        return io.Schema(
            node_id="KindredGuider",
            display_name="Personalization Guider",
            category=CATEGORY,
            description="Personalization Guidance for SamplerCustomAdvanced: the weak model is the weights between base and fine-tuned at omega, on the negative prompt, at the cost of plain CFG.",
            search_aliases=ALIASES,
            inputs=[
                *_pair(),
                io.Conditioning.Input("positive", tooltip="What the image shows."),
                io.Conditioning.Input("negative", optional=True, tooltip=_NEGATIVE + " It must be connected."),
                io.Float.Input("cfg", default=7.5, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=_CFG),
                _omega(),
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
                *_course(),
                io.Conditioning.Input(
                    "subject_agnostic", optional=True, tooltip="Mode subject-agnostic: the prompt without the subject's token, for example with its class word."
                ),
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
        **course,
    ) -> io.NodeOutput:
        from ..guidance.guider import make_guider

        return io.NodeOutput(make_guider(model, base_model, positive, negative, cfg, _schedule(omega, **course), mode, subject_agnostic, scale))


class KindredKSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        names = ["seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image", "denoise"]
        return io.Schema(
            node_id="KindredKSampler",
            display_name="KSampler (Personalization Guidance)",
            category=CATEGORY,
            description="Core KSampler with Personalization Guidance: the subject of a LoRA or a trained concept keeps its likeness better, at the cost of plain CFG.",
            search_aliases=[*ALIASES, "ksampler", "sampler"],
            inputs=[*_pair(), _omega(), *_core_inputs("KSampler", names)],
            outputs=[io.Latent.Output(tooltip="The denoised latent.")],
        )

    @classmethod
    def execute(
        cls,
        model: Model,
        base_model: Model,
        omega,
        seed,
        steps,
        cfg,
        sampler_name,
        scheduler,
        positive: Conditioning,
        negative: Conditioning,
        latent_image,
        denoise=1.0,
    ) -> io.NodeOutput:
        from ..guidance.guider import personalize
        from ..host import sampling

        guided = personalize(model, base_model, _schedule(omega))
        return io.NodeOutput(sampling.ksample(guided, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=denoise))


class KindredKSamplerAdvanced(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        names = [
            "add_noise",
            "noise_seed",
            "steps",
            "cfg",
            "sampler_name",
            "scheduler",
            "positive",
            "negative",
            "latent_image",
            "start_at_step",
            "end_at_step",
            "return_with_leftover_noise",
        ]
        return io.Schema(
            node_id="KindredKSamplerAdvanced",
            display_name="KSampler Advanced (Personalization Guidance)",
            category=CATEGORY,
            description="Core KSampler (Advanced) with Personalization Guidance, for workflows that sample in parts.",
            search_aliases=[*ALIASES, "ksampler advanced"],
            inputs=[*_pair(), _omega(), *_core_inputs("KSamplerAdvanced", names)],
            outputs=[io.Latent.Output(tooltip="The latent, denoised up to `end_at_step`.")],
        )

    @classmethod
    def execute(
        cls,
        model: Model,
        base_model: Model,
        omega,
        add_noise,
        noise_seed,
        steps,
        cfg,
        sampler_name,
        scheduler,
        positive: Conditioning,
        negative: Conditioning,
        latent_image,
        start_at_step,
        end_at_step,
        return_with_leftover_noise,
    ) -> io.NodeOutput:
        from ..guidance.guider import personalize
        from ..host import sampling

        guided = personalize(model, base_model, _schedule(omega))
        return io.NodeOutput(
            sampling.ksample(
                guided,
                noise_seed,
                steps,
                cfg,
                sampler_name,
                scheduler,
                positive,
                negative,
                latent_image,
                disable_noise=add_noise == "disable",
                start_step=start_at_step,
                last_step=end_at_step,
                force_full_denoise=return_with_leftover_noise != "enable",
            )
        )


NODES = [KindredGuider, KindredKSampler, KindredKSamplerAdvanced, KindredPersonalizationGuidance]

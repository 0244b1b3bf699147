"""Inputs and texts that several guidance nodes share."""

from comfy_api.latest import io

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
CFG = "Guidance scale, as in any sampler. 1 turns guidance off and halves the time."
_CORE = {  # what core's own nodes leave unsaid
    "add_noise": "enable: start with noise from noise_seed. disable: the latent already has the previous sampler's noise.",
    "noise_seed": "The random seed of the noise.",
    "seed": "The random seed of the noise.",
    "steps": "Steps of the whole way from noise to image, all parts together.",
    "cfg": CFG,
    "sampler_name": "The algorithm that goes from noise to image.",
    "scheduler": "How the noise levels are spread over the steps.",
    "positive": "What the picture shows: the prompt with your token.",
    "latent_image": "The latent to denoise.",
    "start_at_step": "The first step of this part.",
    "end_at_step": "The step at which this part ends; a number beyond `steps` means the last.",
    "return_with_leftover_noise": "enable: return the latent with its noise, for the next part. disable: finish it in the last step.",
    "denoise": "1 draws anew; lower values keep more of the given latent.",
}
NEGATIVE = "What to guide away from: usually an empty prompt. If the text encoder was tuned too, use Negative Prompt (Personalization Guidance)."


def pair() -> list:
    return [io.Model.Input("model", tooltip=_MODEL), io.Model.Input("base_model", tooltip=_BASE)]


def omega() -> io.Float.Input:
    return io.Float.Input("omega", default=0.6, min=0.0, max=1.0, step=0.05, round=0.001, tooltip=_OMEGA)


def _number(name: str, default: float, least: float, most: float, step: float, tooltip: str) -> io.Float.Input:
    """A number that is seldom changed."""
    return io.Float.Input(name, default=default, min=least, max=most, step=step, round=0.001, optional=True, advanced=True, tooltip=tooltip)


def course() -> list:
    """omega over time and the guidance interval."""
    from ..guidance.schedule import CURVES

    return [
        _number("omega_end", 0.6, 0.0, 1.0, 0.05, "omega at the last step, if `omega_curve` is not constant."),
        io.Combo.Input(
            "omega_curve",
            options=[*CURVES, "curve"],
            default="constant",
            optional=True,
            advanced=True,
            tooltip="How omega changes from `omega` to `omega_end` over sampling. constant: as in the paper. curve: uses the curve below.",
        ),
        _number(
            "start_percent", 0.0, 0.0, 1.0, 0.01, "Guidance starts at this share of sampling. Before it only the positive prompt runs, in half the time a step."
        ),
        _number(
            "end_percent", 1.0, 0.0, 1.0, 0.01, "Guidance ends at this share of sampling. After it only the positive prompt runs, in half the time a step."
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


def subject_agnostic() -> list:
    """T and r of the mode subject-agnostic."""
    return [
        _number(
            "agnostic_until",
            0.9,
            0.0,
            1.0,
            0.01,
            "Mode subject-agnostic: the prompt without the subject guides until this time, from 1 (noise) to 0 (image). The paper's T is 0.9: the first tenth.",
        ),
        _number(
            "agnostic_weight",
            0.0,
            -1.0,
            0.0,
            0.05,
            "Mode subject-agnostic: afterwards, 0 is your prompt alone (the paper's r), -1 the prompt without the subject alone. Between them a step makes three predictions.",
        ),
    ]


def schedule(omega, omega_end=None, omega_curve="constant", start_percent=0.0, end_percent=1.0, curve=None):
    from ..guidance.schedule import Schedule
    from ..host import sampling

    if omega_curve == "curve":
        if curve is None and sampling.has_curves():
            raise ValueError("`omega_curve` is curve, and `curve` is not given: draw one on the node, or connect a Curve Editor.")
        omega_curve = sampling.curve_function(curve)
    return Schedule(omega, omega_end, omega_curve, start_percent, end_percent)


def core_inputs(node: str, names: list[str]) -> list:
    """Core KSampler's own inputs, as this host defines them."""
    from ..host import sampling

    return [sampling.core_input(node, name, {**_CORE, "negative": NEGATIVE}.get(name)) for name in names]

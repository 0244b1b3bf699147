"""The inputs of Train Concept, in the groups in which an artist thinks of them. Names are those of `TrainSettings`."""

from comfy_api.latest import io


def _rate(name: str, tooltip: str, advanced: bool = False):
    return io.Float.Input(name, default=0.0, min=0.0, max=10.0, step=1e-6, round=1e-8, optional=advanced, advanced=advanced, tooltip=tooltip)


def _float(name: str, default: float, most: float, step: float, tooltip: str):
    return io.Float.Input(name, default=default, min=0.0, max=most, step=step, optional=True, advanced=True, tooltip=tooltip)


def _int(name: str, default: int, least: int, most: int, tooltip: str):
    return io.Int.Input(name, default=default, min=least, max=most, optional=True, advanced=True, tooltip=tooltip)


def _choice(name: str, options: list[str], tooltip: str):
    return io.Combo.Input(name, options=options, default=options[0], optional=True, advanced=True, tooltip=tooltip)


def _switch(name: str, default: bool, tooltip: str):
    return io.Boolean.Input(name, default=default, optional=True, advanced=True, tooltip=tooltip)


def _token() -> list:
    return [
        _rate("token_learning_rate", "Learning rate of the token vectors. 0 = the method's default, or learning_rate if that is set.", advanced=True),
        _int("vectors", 1, 1, 8, "Vectors for each token. More hold more of the subject and drift further from its class."),
        _switch(
            "direction_only", False, "Train only the direction of the vectors; their length stays at the vocabulary's (Directional Textual Inversion, 2025)."
        ),
    ]


def _low_rank() -> list:
    return [
        io.Int.Input("rank", default=16, min=1, max=1024, tooltip="Rank of the adapter: its capacity. 4 to 32 is usual for one subject."),
        io.Float.Input(
            "alpha",
            default=0.0,
            min=0.0,
            max=1024.0,
            step=0.5,
            optional=True,
            advanced=True,
            tooltip="The adapter is scaled by alpha / rank. 0 = the rank, a scale of 1.",
        ),
        io.Combo.Input(
            "targets",
            options=["attention", "attention + feed-forward", "attention + feed-forward + convolutions", "cross-attention"],
            default="attention",
            tooltip="The layers that get an adapter. More layers hold more of the subject, and more of the photos' look.",
        ),
        _choice("adapter", ["LoRA", "DoRA", "LoHa", "LoKr", "OFT"], "Type of the adapter. Every tool reads LoRA, and it costs the least."),
        _switch("train_text_encoder", False, "Also put an adapter on the text encoder. The Semantic Preservation Loss then keeps it close to the class."),
        _rate("text_learning_rate", "Learning rate of the text encoder's adapter. 0 = 5e-5, or half of learning_rate if that is set.", advanced=True),
    ]


METHOD = io.DynamicCombo.Input(
    "method",
    options=[
        io.DynamicCombo.Option("kv + token", _token()),
        io.DynamicCombo.Option("lora + token", [*_low_rank(), *_token()]),
        io.DynamicCombo.Option("lora", _low_rank()),
        io.DynamicCombo.Option("token", _token()),
    ],
    tooltip="What is trained. kv + token: the K and V projections of every cross-attention and each token's vector (ClassDiffusion). lora + token: an adapter and the token (pivotal tuning). lora: an adapter alone, with a rare word as the token (DreamBooth). token: the vector alone (textual inversion).",
)

MAIN = [
    io.Float.Input(
        "spl_weight",
        default=1.0,
        min=0.0,
        max=1000.0,
        step=0.01,
        tooltip="Weight of the Semantic Preservation Loss, which keeps the token close to its class. 0 = off. In the paper 0.01 to 100 give nearly the same result.",
    ),
    io.Float.Input(
        "prior_weight",
        default=1.0,
        min=0.0,
        max=100.0,
        step=0.05,
        tooltip="Weight of the loss on the concepts' prior images. No effect without prior images.",
    ),
    io.Int.Input("steps", default=500, min=1, max=100000, tooltip="Training steps. The papers use 500 for one subject and 800 for several."),
    io.Int.Input("batch_size", default=2, min=1, max=64, tooltip="Photos in each step. Prior images are added to these."),
    _rate(
        "learning_rate",
        "Learning rate of the model's part. 0 = the method's default: 2e-5 for kv + token (the paper's code), 1e-4 for LoRA, 5e-4 for a token alone.",
    ),
    io.Int.Input(
        "resolution",
        default=512,
        min=64,
        max=2048,
        step=8,
        tooltip="Side of the square training picture in pixels: 512 for SD 1.5, 768 for SD 2.x, 1024 for SDXL and SD3.",
    ),
    io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip="The same seed, photos and settings give the same result.",
    ),
    io.Int.Input("preview_every", default=0, min=0, max=100000, optional=True, tooltip="Draw the preview prompt every N steps. 0 = never."),
    io.Combo.Input(
        "resume",
        options=["new run", "continue"],
        default="new run",
        optional=True,
        tooltip="continue: go on from the newest state of run_name. It must have the same photos and settings.",
    ),
]

DATA = [
    _switch("augment", True, "Show the subject at different sizes and positions, with prompts that say so (Custom Diffusion's augmentation)."),
    _switch("flip", True, "Mirror half of the pictures. Turn it off for subjects with writing or one-sided marks."),
]

OPTIMIZER = [
    _float("weight_decay", 0.01, 1.0, 0.001, "The optimizer's weight decay."),
    _float("clip_norm", 1.0, 100.0, 0.1, "Clip gradients to this norm. 0 = never."),
    _choice(
        "precision",
        ["auto", "fp32", "bf16", "fp16"],
        "Precision of the forward pass; trained weights stay in fp32. auto: bf16 if the graphics card has it, fp16 with loss scaling on older ones, fp32 on a processor.",
    ),
    _int("accumulation", 1, 1, 1024, "Forward and backward passes for each step: the effect of a larger batch without its memory."),
    _switch("gradient_checkpointing", False, "Recompute activations in the backward pass instead of keeping them: much less memory, about a third slower."),
    _choice(
        "optimizer",
        ["AdamW", "AdamW 8-bit", "Prodigy", "Adafactor"],
        "AdamW 8-bit needs the package bitsandbytes and a CUDA card, Prodigy needs the package prodigyopt; leave all learning rates at 0 with it.",
    ),
    _choice("schedule", ["constant", "linear", "cosine", "cosine with restarts"], "How the learning rates change over the run."),
    _int("warmup_steps", 0, 0, 100000, "Steps over which the learning rates rise from 0."),
    _float(
        "ema_decay",
        0.0,
        0.99999,
        0.001,
        "Decay of the moving average of the weights, which becomes the result. 0 = use the last weights; 0.99 is usual for 500 steps.",
    ),
]

LOSSES = [
    _float(
        "preservation_weight",
        0.0,
        100.0,
        0.1,
        "Weight of output preservation (DOP): on the class prompt, the tuned model is kept close to the base model. Costs two more forward passes.",
    ),
    _choice("loss", ["l2", "huber", "smooth_l1"], "l2 is the papers' loss. The others weigh single large errors less."),
    _float("huber_delta", 0.1, 10.0, 0.01, "Where huber and smooth_l1 change from quadratic to linear."),
    _float("min_snr_gamma", 0.0, 100.0, 0.5, "Min-SNR weighting of the noise levels; 5 is usual. 0 = the papers' plain mean. Not for flow models."),
    _choice("noise", ["auto", "uniform", "logit-normal"], "How noise levels are drawn. auto = as in the model's own paper."),
    _choice(
        "crop",
        ["square", "buckets"],
        "square: the middle of each photo, as the papers do. buckets: the photos' own shapes, at about the same number of pixels.",
    ),
    _float("caption_dropout", 0.0, 1.0, 0.01, "Probability that a photo gets the empty prompt."),
]

WATCHING = [
    io.String.Input(
        "preview_prompt",
        default="a photo of a {token} {class} on the beach",
        optional=True,
        advanced=True,
        tooltip="Prompt of the previews. {token} and {class} are the first concept's.",
    ),
    _float("preview_omega", 0.6, 1.0, 0.05, "Personalization Guidance's omega for the previews. 1 = plain CFG."),
    io.Float.Input("preview_cfg", default=7.5, min=0.0, max=100.0, step=0.1, optional=True, advanced=True, tooltip="Guidance scale of the previews."),
]

KEEPING = [
    io.String.Input(
        "run_name",
        default="",
        optional=True,
        advanced=True,
        tooltip="Folder of the training states, in output/kindred/runs. Empty = named after the tokens. A new run never overwrites another.",
    ),
    _int("save_every", 100, 0, 100000, "Save a state every N steps, so that an interrupted or crashed run can continue. 0 = save nothing."),
]

WATCHED = ("preview_every", "preview_prompt", "preview_omega", "preview_cfg")
KEPT = ("run_name", "save_every", "resume")

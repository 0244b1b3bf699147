"""The help of recipes: an example, and every setting. Knows no torch, so that the shell shows it before anything is set up."""

from __future__ import annotations

import textwrap

from .declare import GROUPS, Setting, declared
from .settings import KeepSettings, TrainSettings, WatchSettings

EXAMPLE = """
checkpoint = "v1-5-pruned-emaonly.safetensors"   # a file beside this one, or a name in models/checkpoints
name = "biscuit"                                 # of the saved concept, and of the run

[train]                                          # settings of Train Concept and Training Options; rates and the resolution may be "auto"
method = "kv + token"
steps = 500

[[concept]]                                      # one or more
photos = "photos/biscuit"                        # a folder beside this file; captions in .txt files of the same names
token = "<v1>"
class_word = "dog"
# also: instance_prompt, class_prompt, initializer, repeats, prior_images (a folder)

[preview]                                        # optional
every = 100
prompt = "a photo of a {token} {class} on the beach"
# also: omega, cfg, heldout_every, stop_after, clip and dino (scoring models: folders in models/evaluation)

[save]                                           # optional
every = 100                                      # steps between two states, 0 = none
dtype = "float16"
overwrite = false
which = "last"                                   # "best": the best measured step; or the number of a kept step, as text
keep_steps = 5                                   # how many of the last measured steps keep their files
""".strip()
_NAMES = 24  # columns
_ENTRIES = {  # a recipe's entry -> its setting; it has `name` and --resume in place of the other settings of KeepSettings
    **{one.name: one for one in declared(TrainSettings)},
    **{f"[preview] {one.name.removeprefix('preview_')}": one for one in declared(WatchSettings)},
    **{f"[save] {one.name.removeprefix('save_')}": one for one in declared(KeepSettings) if one.name in ("save_every", "keep_steps")},
}


def text(width: int = 100) -> str:
    """The example, then the settings group by group: table if not [train], name, default, what it may be, what it does."""
    lines = ["A recipe:", "", textwrap.indent(EXAMPLE, "  "), "", "Settings of [train], and of [preview] and [save] where that is said:"]
    for group, heading in GROUPS.items():
        own = {name: one for name, one in _ENTRIES.items() if one.group == group}
        lines += ["", heading.replace("`", "")] if own else []
        for name, one in own.items():
            lines += textwrap.wrap(f"{name + ' ':<{_NAMES}}{_values(one)}. {one.help}", width, initial_indent="  ", subsequent_indent=" " * (_NAMES + 2))
    return "\n".join(lines)


def _values(one: Setting) -> str:
    default = {True: "true", False: "false"}.get(one.default) if one.type is bool else repr(one.shown(one.default)).replace("'", '"')
    if one.choices:
        return f"{default} (or {', '.join(choice for choice in one.choices if choice != one.default)})"
    if one.type in (int, float):
        return f"{default} ({one.least:g} to {one.most:g})"
    return f"{default}"

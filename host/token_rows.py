"""A concept's K and V differences that act on its token's rows of the text, and on no others, while sampling.

    K = W_k x + m (dW_k x)        V = W_v x + m (dW_v x)        m = 1 on the rows of the text features x that belong to the token, else 0

The rows' features x are known before the run, and no step changes them. So dW x is computed once for each of these rows. In a forward, m is found
by comparing the text features with the known rows, bit for bit: whatever batches, pads or reorders them, the difference acts on the right
rows or on none. A layer then adds m (dW x) in one product.

The host repeats a batch of the same conditions at every step. As long as no other pack's code can have changed them, a layer keeps its keys or values of
such a batch and hands out copies: a step then takes as many launches as without the concept, and less work.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from . import adapters, batch_rows, families, forwards, known_rows, sampling, text_rows
from . import patcher as host_patcher
from .text_rows import KEY

log = logging.getLogger(__name__)
_MOST = 2**26  # comparisons at once
_KEPT = 0.02  # of the model's size: what the layers may keep


@dataclass(frozen=True, eq=False)
class Difference:
    """One concept on one model.

    tags      digests of the tokens on whose rows it acts (`formats.token_rows`)
    names     the tokens as prompts write them, for messages
    strength  with which it was loaded
    patches   weight key -> the host's patch, its strength included
    """

    tags: frozenset[str]
    names: tuple[str, ...]
    strength: float
    patches: Mapping[str, adapters.Patch]


def is_text_layer(patcher, key: str) -> bool:
    """Does the weight `key` make keys or values of text features?"""
    return families.is_text_layer(host_patcher.network(patcher.model), key.removeprefix(host_patcher.DIFFUSION).removesuffix(".weight"))


def attach(model, difference: Difference):
    """A clone of `model` that has `difference`, besides those that it has already."""
    clone = model.clone()
    host_patcher.wrap(clone, KEY, outermost=True, sampler_sample=TokenRows((*differences(model), difference)).sampler_sample)
    return clone


def differences(patcher) -> tuple[Difference, ...]:
    """All differences of a MODEL that act on tokens' rows alone."""
    wrapper = host_patcher.wrapper(patcher, KEY, "sampler_sample")
    return () if wrapper is None else wrapper.__self__.differences


def ratios(tuned, base) -> dict[str, float]:
    """Tag -> strength of its difference on `base` / that on `tuned`, for each tag where they differ. ValueError if only `base` has a difference."""
    ours, theirs = _strengths(tuned), _strengths(base)
    if theirs.keys() - ours.keys():
        raise ValueError(
            "`base_model` carries a concept that `model` lacks. The two inputs are probably swapped: connect the model after Load Concept to `model`, "
            "and the model before it to `base_model`."
        )
    return {tag: theirs.get(tag, 0.0) / strength for tag, strength in ours.items() if strength and theirs.get(tag, 0.0) != strength}


def _strengths(patcher) -> dict[str, float]:
    found: dict[str, float] = {}
    for difference in differences(patcher):
        for tag in difference.tags:
            found[tag] = found.get(tag, 0.0) + difference.strength
    return found


@contextmanager
def weakened(options: dict, spans: tuple[slice, ...], shares: Mapping[str, float], omega: float) -> Iterator[None]:
    """Within it, a forward with the transformer options `options` has the share `shares[tag]` of each difference on the rows `spans` of its batch.

    omega  of the weak weights that the layers have on these rows
    """
    run = options.get(KEY)
    if run is None:
        yield
        return
    before = run.weak, run.side
    run.weak = (spans, shares) if spans and any(share != 1.0 for share in shares.values()) else None
    run.side = (tuple((span.start, span.stop) for span in spans), omega)
    try:
        yield
    finally:
        run.weak, run.side = before


class TokenRows:
    """The hook of one patched model."""

    def __init__(self, differences: tuple[Difference, ...]):
        self.differences = differences

    def sampler_sample(self, executor, guider, sigmas, extra_args, *args, **kwargs):
        """Around the whole run: the differences act inside, and are gone afterwards."""
        known = known_rows.of_guider(guider, _tags(self.differences))
        if batch_rows.foreign_options(guider.model_options, KEY):
            known = known_rows.with_latest(known, guider, _tags(self.differences))  # couplers hold prompts that the guider does not
        if not known:
            names = ", ".join(dict.fromkeys(repr(name) for difference in self.differences for name in difference.names))
            tell = log.warning if text_rows.lost_tags() & _tags(self.differences) else log.info
            tell(
                "Kindred: no prompt of this run names %s, so the pictures are the model's without the concept. (If one does, another node encoded it in a way that "
                "hides where the token stands: use CLIP Text Encode or Text Encode Concept.)",
                names,
            )
            return executor(guider, sigmas, extra_args, *args, **kwargs)
        run = Run(guider, self.differences, known)
        sampling.add_wrappers(extra_args["model_options"], KEY, apply_model=run.apply, diffusion_model=run.forward)
        options = extra_args["model_options"]["transformer_options"]
        before = options.get(KEY)
        options[KEY] = run
        try:
            with run.installed():
                result = executor(guider, sigmas, extra_args, *args, **kwargs)
        finally:
            options.pop(KEY) if before is None else options.update({KEY: before})
        run.warn_unseen()
        return result


class Run:
    """One sampling run. `known`: (tag, features [width]) of each row that belongs to a token, no two of them equal."""

    def __init__(self, guider, differences: tuple[Difference, ...], known: list[tuple[str, torch.Tensor]]):
        self.patcher, self.module, self.differences = guider.model_patcher, guider.inner_model, differences
        self.device = host_patcher.load_device(self.patcher)
        self.tags = [tag for tag, _ in known]
        self.features = torch.stack([row for _, row in known]).to(self.device)
        self.cast: dict[torch.dtype, torch.Tensor] = {}
        self.weak: tuple[tuple[slice, ...], Mapping[str, float]] | None = None  # of the current forward: rows of the batch, share of each tag there
        self.side: tuple = ()  # what tells the weak weights of the current forward from those of others
        self.context: torch.Tensor | None = None  # of the current forward, with its mask
        self.mask: torch.Tensor | None = None
        self.lost = torch.zeros((), dtype=torch.bool, device=self.device)  # did a layer get other features, without the rows that the forward came with?
        self.batch: tuple | None = None  # of the current forward: the same for every batch of the same conditions; None if another pack may change them
        self.moving = sampling.has_weight_hooks(guider) or batch_rows.foreign_options(guider.model_options, KEY) is not None
        self.masks: dict[tuple, torch.Tensor] = {}
        self.room = int(_KEPT * self.patcher.model_size())
        self.seen = torch.zeros(len(known), dtype=torch.bool, device=self.device)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within it the layers add their differences."""
        by_key: dict[str, list[tuple[Difference, adapters.Patch]]] = {}
        for difference in self.differences:
            for key, patch in difference.patches.items():
                by_key.setdefault(key, []).append((difference, patch))
        with host_patcher.without_injections(self.patcher), torch.autocast(self.device.type, enabled=False):
            built = []
            for key, own in by_key.items():
                layer, _ = host_patcher.weight_owner(self.patcher, key)
                built.append((key, layer, RowsForward(self, forwards.host_forward(layer.forward), key, own)))
        with forwards.replaced(built, "the concept cannot act on its token's rows there"):
            yield

    def apply(self, executor, *args, **kwargs):
        """Wraps one forward of the host's model (outside of what torch.compile traces)."""
        if executor.class_obj is not self.module:
            raise RuntimeError("A concept that acts on its token's rows works on one GPU: it is not on the others. Remove the multi-GPU node.")
        return executor(*args, **kwargs)

    def forward(self, executor, x, timesteps, context=None, *args, **kwargs):
        """Wraps one forward of the network: finds the rows in its text features."""
        options = args[2] if len(args) > 2 else kwargs.get("transformer_options", {})
        before = self.context, self.mask, self.batch
        self.batch = self._batch(context, options)
        if self.batch is None:
            self.mask = self._weakened(self.find(context))
        else:
            if self.batch not in self.masks:
                self.masks[self.batch] = self._weakened(self.find(context))
            self.mask = self.masks[self.batch]
        self.context = context
        try:
            return executor(x, timesteps, context, *args, **kwargs)
        finally:
            self.context, self.mask, self.batch = before

    def _batch(self, context: torch.Tensor, options: dict) -> tuple | None:
        """What tells a batch of conditions from all others of the run: the host's names of them, their sides, and the weak rows."""
        if self.moving or torch.compiler.is_compiling() or not options.get("uuids") or batch_rows.foreign_patches(options, KEY):
            return None
        return (*options["uuids"], *options.get("cond_or_uncond", ()), tuple(context.shape), context.dtype, self.side)

    def find(self, context: torch.Tensor) -> torch.Tensor:
        """[B, rows, known rows] in the dtype of `context` [B, rows, width]: 1 where a row equals a known one."""
        features = self._features(context.dtype)
        if context.ndim != 3 or context.shape[-1] != features.shape[-1]:
            raise RuntimeError(f"The text features have the shape {list(context.shape)}; expected [batch, rows, {features.shape[-1]}].")
        if context.numel() * len(features) <= _MOST:
            equal = (context.unsqueeze(2) == features).all(dim=-1)
        else:
            equal = torch.stack([(context == row).all(dim=-1) for row in features], dim=-1)
        self.seen |= equal.flatten(0, 1).any(dim=0)
        return equal.to(context.dtype)

    def _features(self, dtype: torch.dtype) -> torch.Tensor:
        if dtype not in self.cast:
            self.cast[dtype] = self.features.to(dtype)
        return self.cast[dtype]

    def _weakened(self, mask: torch.Tensor) -> torch.Tensor:
        """`mask` with the shares that the weak model has of the differences, on its rows of the batch."""
        if self.weak is None:
            return mask
        spans, shares = self.weak
        scale = torch.tensor([shares.get(tag, 1.0) for tag in self.tags], dtype=mask.dtype, device=mask.device)
        for span in spans:
            mask[span] *= scale
        return mask

    def warn_unseen(self) -> None:
        """Warn if the known rows, or some of them, did not reach the layers."""
        if bool(self.lost):
            log.warning(
                "Kindred: another node gives layers of the model text features of its own, in which the concept's token was not found, so the concept had no effect there. "
                "Encode that node's prompts by CLIP Text Encode with the concept's CLIP, or load the concept with core's Load LoRA, which applies it to all rows."
            )
        if not bool(self.seen.any()):
            log.warning(
                "Kindred: another node changed the text features on their way into the model, so the concept was not found in them and had no effect. "
                "Remove that node, or load the concept with core's Load LoRA, which applies it to all rows."
            )


class RowsForward(forwards.Replaced):
    """forward(x) plus the differences on the tokens' rows of x."""

    on_top = True

    def __init__(self, run: Run, original, key: str, own: list[tuple[Difference, adapters.Patch]]):
        super().__init__(original)
        self.run = run
        patcher, dtype = run.patcher, host_patcher.compute_dtype(run.patcher)
        rows = run._features(dtype).float()
        self.outputs: dict[tuple, torch.Tensor] = {}  # of batches that come again
        self.added = None  # [known rows, out]
        own_rows = [([at for at, tag in enumerate(run.tags) if tag in difference.tags], patch) for difference, patch in own]
        for mine, patch in own_rows:
            weight = _delta(patcher, key, patch, run.device)
            value = torch.zeros(len(rows), weight.shape[0], device=run.device)
            value[mine] = rows[mine] @ weight.t()
            self.added = value if self.added is None else self.added + value
        self.added = self.added.to(dtype)

    def __call__(self, x, *args, **kwargs):
        if self.retired or self.run.mask is None:
            return self.original(x, *args, **kwargs)
        run = self.run
        if run.batch is None or x is not run.context:
            return self._added(x, self.original(x, *args, **kwargs))
        if run.batch in self.outputs:
            return self.outputs[run.batch].clone()  # whoever gets it may change it
        y = self._added(x, self.original(x, *args, **kwargs))
        if y.nbytes <= run.room:
            run.room -= y.nbytes
            self.outputs[run.batch] = y.clone()
        return y

    def _added(self, x, y):
        """`y` with the differences on the tokens' rows of `x`."""
        run, mask = self.run, self.run.mask
        if x is not run.context:  # another node gave the layer text features of its own
            found = run.find(x)
            run.lost |= mask.any() & ~found.any()
            mask = run._weakened(found)
        return torch.addmm(y.flatten(0, -2), mask.flatten(0, -2).to(y.dtype), self.added.to(y.dtype)).view(y.shape)


def _delta(patcher, key: str, patch: adapters.Patch, device: torch.device) -> torch.Tensor:
    """What `patch` adds to its weight, float32. A patch that multiplies the weight is taken on the weight as it came from the file."""
    shape = host_patcher.pristine(patcher, key).shape
    if adapters.additive_term(patch, shape) is not None:
        return host_patcher.patched(patcher, key, [patch], device, start=torch.zeros(shape, dtype=torch.float32, device=device))
    return host_patcher.patched(patcher, key, [patch], device) - host_patcher.patched(patcher, key, [], device)


def _tags(differences: tuple[Difference, ...]) -> frozenset[str]:
    return frozenset().union(*(difference.tags for difference in differences))

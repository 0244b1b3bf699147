"""Draw: core's two samplers with Personalization Guidance."""

from comfy_api.latest import io

from ..host.types import Conditioning, Model
from . import guidance_inputs as inputs


class KindredKSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        names = ["seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image", "denoise"]
        return io.Schema(
            node_id="KindredKSampler",
            display_name="KSampler (Personalization Guidance)",
            category=inputs.CATEGORY,
            description="Core KSampler with Personalization Guidance: the subject of a LoRA or a trained concept keeps its likeness better, at the cost of plain CFG.",
            search_aliases=[*inputs.ALIASES, "ksampler", "sampler"],
            inputs=[*inputs.pair(), inputs.omega(), *inputs.core_inputs("KSampler", names)],
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

        guided = personalize(model, base_model, inputs.schedule(omega))
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
            category=inputs.CATEGORY,
            description="Core KSampler (Advanced) with Personalization Guidance, for workflows that sample in parts.",
            search_aliases=[*inputs.ALIASES, "ksampler advanced"],
            inputs=[*inputs.pair(), inputs.omega(), *inputs.core_inputs("KSamplerAdvanced", names)],
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

        guided = personalize(model, base_model, inputs.schedule(omega))
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


NODES = [KindredKSampler, KindredKSamplerAdvanced]

"""Prior Images: what the base model itself draws of a class, for prior preservation."""

from comfy_api.latest import io

from ..host.types import Clip, Model, Vae
from .concept import CATEGORY


class KindredPriorImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..host import sampling

        return io.Schema(
            node_id="KindredPriorImages",
            display_name="Prior Images",
            category=CATEGORY,
            description="Draws ordinary pictures of a class with the base model, for a Concept's prior_images. Drawn once and kept in output/kindred/prior.",
            search_aliases=["regularization images", "class images", "prior preservation", "reg images", "dreambooth class images"],
            inputs=[
                io.Model.Input("model", tooltip="The model before training: what it draws now is what training should preserve."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Decodes latents into pictures."),
                io.String.Input(
                    "class_prompt", default="a photo of a dog", tooltip="What the pictures show. Use the same words as the Concept's class_prompt."
                ),
                io.Int.Input(
                    "count",
                    default=200,
                    min=1,
                    max=10000,
                    tooltip="How many pictures; Custom Diffusion takes 200. A larger number later adds to those on disk.",
                ),
                io.Int.Input("steps", default=30, min=1, max=1000, tooltip="Sampling steps for each picture."),
                io.Float.Input("cfg", default=6.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Classifier-free guidance. 1 to 3 for distilled models."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Another seed draws other pictures. The old ones stay on disk.",
                ),
                io.Int.Input("width", default=512, min=64, max=4096, step=8, tooltip="In pixels. Use the model's native size: 512 for SD 1.5, 1024 for SDXL."),
                io.Int.Input("height", default=512, min=64, max=4096, step=8, tooltip="In pixels, as width."),
                io.Combo.Input("sampler_name", options=sampling.SAMPLERS, default="euler", optional=True, advanced=True, tooltip="As in core's KSampler."),
                io.Combo.Input("scheduler", options=sampling.SCHEDULERS, default="normal", optional=True, advanced=True, tooltip="As in core's KSampler."),
                io.Int.Input(
                    "batch_size",
                    default=4,
                    min=1,
                    max=64,
                    optional=True,
                    advanced=True,
                    tooltip="Pictures drawn together. A larger batch is faster if memory allows, and draws other pictures.",
                ),
            ],
            outputs=[io.Image.Output("images", display_name="images", is_output_list=True, tooltip="For a Concept's prior_images.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Model, clip: Clip, vae: Vae, count, **settings) -> io.NodeOutput:
        from ..host import paths
        from ..training.data.prior import PriorSettings, cache_name, prior_images

        settings = PriorSettings(**settings)
        folder = paths.prior_folder(cache_name(model, clip, vae, settings))
        return io.NodeOutput(prior_images(model, clip, vae, settings, count, folder, cls.hidden.unique_id))


NODES = [KindredPriorImages]

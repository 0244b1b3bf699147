"""Concept: the photos of one subject, and what to call it."""

import logging

from comfy_api.latest import io

log = logging.getLogger(__name__)

CATEGORY = "personalization"
ConceptType = io.Custom("KINDRED_CONCEPT")


class KindredPhotos(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..host import paths

        return io.Schema(
            node_id="KindredPhotos",
            display_name="Load Photos",
            category=CATEGORY,
            description="All photos of a folder inside ComfyUI's input folder, sorted by name. Applies the camera's rotation, turns transparency into masks, and reads text files of the same name as captions.",
            search_aliases=["load images", "image folder", "dataset", "batch load", "product photo", "training images"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=paths.photo_folders(),
                    tooltip="A folder inside ComfyUI's input folder with three to six photos of the subject. Press R to refresh the list.",
                )
            ],
            outputs=[
                io.Image.Output("images", display_name="images", is_output_list=True, tooltip="One image for each photo; sizes may differ."),
                io.Mask.Output(
                    "masks", display_name="masks", is_output_list=True, tooltip="Opacity of each photo: white everywhere if it has no transparency."
                ),
                io.String.Output("captions", display_name="captions", is_output_list=True, tooltip="Text of NAME.txt beside NAME.jpg; empty if there is none."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, folder) -> str:
        from ..host import paths
        from ..training.data.photos import fingerprint

        return fingerprint(paths.photo_folder(folder))

    @classmethod
    def execute(cls, folder) -> io.NodeOutput:
        import torch

        from ..host import paths, prompt
        from ..training.data.photos import read_photos

        remarks: list[str] = []
        photos = read_photos(paths.photo_folder(folder), remarks.append)
        for remark in remarks:
            log.warning("Kindred: folder %r: %s", folder, remark)
        if remarks:
            prompt.show_on_node(cls.hidden.unique_id, " ".join(remarks))
        return io.NodeOutput(
            [torch.from_numpy(photo.pixels)[None] for photo in photos],
            [torch.ones(1, *photo.pixels.shape[:2]) if photo.alpha is None else torch.from_numpy(photo.alpha)[None] for photo in photos],
            [photo.caption for photo in photos],
        )


class KindredConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KindredConcept",
            display_name="Concept",
            category=CATEGORY,
            description="The photos of one subject (three to six are enough), the token that names it in prompts, and its class.",
            search_aliases=["subject", "character", "trigger word", "textual inversion", "custom diffusion", "instance images"],
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="Photos of the subject, as a batch or a list; sizes may differ. Train Concept crops each to its middle square, or keeps its shape in buckets.",
                ),
                io.String.Input("token", default="<v1>", tooltip="How prompts name the subject. Choose a word that no other prompt uses; brackets help."),
                io.String.Input(
                    "class_word", default="dog", tooltip="What the subject is, in one or two words: dog, teapot, toy. The model is kept from forgetting it."
                ),
                io.Mask.Input(
                    "masks", optional=True, tooltip="One mask for each image: only the white part is learned. Useful if the background is always the same."
                ),
                io.String.Input(
                    "captions",
                    optional=True,
                    multiline=True,
                    default="",
                    tooltip="One line for each image, a list with one text for each image, or nothing. {token} and {class} are filled in. A line without the token gets the instance prompt in front; an empty line means the instance prompt.",
                ),
                io.String.Input(
                    "instance_prompt",
                    optional=True,
                    default="a photo of a {token} {class}",
                    advanced=True,
                    tooltip="Training prompt of images without a caption. The Semantic Preservation Loss keeps its meaning near the class prompt.",
                ),
                io.String.Input(
                    "class_prompt",
                    optional=True,
                    default="a photo of a {class}",
                    advanced=True,
                    tooltip="The same prompt without the token: the meaning to keep, and the prompt of the prior images.",
                ),
                io.String.Input(
                    "initializer",
                    optional=True,
                    default="auto",
                    advanced=True,
                    tooltip="The word whose embedding the token starts from. auto: a rare word, another one for each concept, as the papers' code has it. The class word starts nearer to the class.",
                ),
                io.Image.Input(
                    "prior_images",
                    optional=True,
                    tooltip="Ordinary pictures of the class for prior preservation (prior_weight in Training Options). From Prior Images, or your own. Optional with the Semantic Preservation Loss; both can be used together.",
                ),
                io.Int.Input(
                    "repeats",
                    optional=True,
                    default=1,
                    min=1,
                    max=1000,
                    advanced=True,
                    tooltip="With several concepts: how often this one is shown relative to the others. 2 beside 1 means twice as often.",
                ),
            ],
            outputs=[ConceptType.Output("concept", display_name="concept", tooltip="For Train Concept.")],
        )

    @classmethod
    def execute(
        cls,
        images,
        token,
        class_word,
        masks=(),
        captions=("",),
        instance_prompt=("a photo of a {token} {class}",),
        class_prompt=("a photo of a {class}",),
        initializer=("auto",),
        prior_images=(),
        repeats=(1,),
    ) -> io.NodeOutput:
        from ..training.data.concept import make_concept

        return io.NodeOutput(
            make_concept(
                images,
                token[0],
                class_word[0],
                masks=masks or (),
                captions=captions,
                instance_prompt=instance_prompt[0],
                class_prompt=class_prompt[0],
                initializer=initializer[0],
                prior_images=prior_images or (),
                repeats=repeats[0],
            )
        )


NODES = [KindredPhotos, KindredConcept]

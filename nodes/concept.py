"""Concept: the photos of one subject, and what to call it."""

from comfy_api.latest import io

CATEGORY = "personalization"
ConceptType = io.Custom("KINDRED_CONCEPT")


class KindredConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KindredConcept",
            display_name="Concept",
            category=CATEGORY,
            description="The photos of one subject (three to six are enough), the token that will name it in prompts, and the kind it belongs to.",
            search_aliases=["dreambooth", "subject", "textual inversion", "custom diffusion", "instance images"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="Photos of the subject, as a batch or as a list; their sizes may differ. Each is cut square at its middle. Transparency becomes a mask."),
                io.String.Input("token", default="<v1>", tooltip="How prompts will name the subject. Choose something no prompt uses otherwise; brackets help."),
                io.String.Input("class_word", default="dog", tooltip="The kind of the subject in one word or two: dog, teapot, toy. It is what the subject must not forget."),
                io.Mask.Input("masks", optional=True, tooltip="One mask for each image: only the white part is learned. Useful where the background is always the same."),
                io.String.Input("captions", optional=True, multiline=True, default="", tooltip="One line for each image, or nothing. {token} and {class} are filled in; a line that does not name the token gets the instance prompt in front; an empty line means the instance prompt."),
                io.String.Input("instance_prompt", optional=True, default="a photo of a {token} {class}", advanced=True, tooltip="The training prompt of images without a caption, and the prompt whose meaning the Semantic Preservation Loss keeps."),
                io.String.Input("class_prompt", optional=True, default="a photo of a {class}", advanced=True, tooltip="The same prompt without the token: the meaning that is kept, and the prompt of the prior images."),
                io.String.Input("initializer", optional=True, default="ktn", advanced=True, tooltip="The word whose embedding the token starts from. A rare one (the papers' choice) leaves everything to be learned; the class word starts nearer to the kind."),
                io.Image.Input("prior_images", optional=True, tooltip="Ordinary pictures of the class for prior preservation (prior_weight in Train Concept). Not needed with the Semantic Preservation Loss, but both go together."),
            ],
            outputs=[ConceptType.Output("concept", display_name="concept")],
        )

    @classmethod
    def execute(cls, images, token, class_word, masks=(), captions=("",), instance_prompt=("a photo of a {token} {class}",), class_prompt=("a photo of a {class}",),
                initializer=("ktn",), prior_images=()) -> io.NodeOutput:
        from ..training.concept import make_concept

        return io.NodeOutput(make_concept(
            images, token[0], class_word[0], masks=masks or (), captions=captions[0] if len(captions) == 1 else list(captions), instance_prompt=instance_prompt[0],
            class_prompt=class_prompt[0], initializer=initializer[0], prior_images=prior_images or (),
        ))


NODES = [KindredConcept]

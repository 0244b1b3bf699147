"""Labelled Grid: several pictures as one, so that a comparison can be seen and kept."""

from comfy_api.latest import io

from .concept import CATEGORY


class KindredGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KindredGrid",
            display_name="Labelled Grid",
            category=CATEGORY,
            description="Puts pictures side by side under their labels: a sweep of one setting, or several ways to draw one prompt. Pictures of one batch are stacked.",
            search_aliases=["xy plot", "image grid", "contact sheet", "compare images", "label images"],
            inputs=[
                io.Autogrow.Input(
                    "images",
                    io.Autogrow.TemplatePrefix(
                        io.Image.Input("image", tooltip="A picture, or a batch, whose pictures are stacked. Connect one and another input appears."),
                        prefix="image_",
                        min=1,
                        max=25,
                    ),
                    tooltip="The pictures, in the order of the labels.",
                ),
                io.String.Input("labels", multiline=True, default="", tooltip="One line for each picture, in order. An empty line means no label."),
                io.String.Input("title", default="", optional=True, tooltip="A line above the grid, for example the prompt. Empty: none."),
                io.Int.Input("columns", default=0, min=0, max=25, optional=True, tooltip="Pictures in each row. 0: all in one row."),
                io.Combo.Input("theme", options=["dark", "light"], default="dark", optional=True, advanced=True, tooltip="Colours of background and labels."),
            ],
            outputs=[io.Image.Output("grid", display_name="grid", tooltip="The grid as one picture.")],
        )

    @classmethod
    def execute(cls, images, labels, title="", columns=0, theme="dark") -> io.NodeOutput:
        from ..evaluation.grid import grid

        return io.NodeOutput(grid([image for image in images.values() if image is not None], labels.splitlines(), title, columns, theme))


NODES = [KindredGrid]

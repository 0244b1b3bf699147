"""The miniature world: a program that draws it, the captions that describe it, and the subjects that no caption can name.

Needs Pillow and numpy only, so the demo and the training script can use it before any model exists:
put the folder ``dev/demo/`` on ``sys.path`` and import ``world.scene`` or ``world.subjects``.
"""

"""What the tests share: the real host in this process, the pack as the host loads it, small real models, a real server."""

from .host import COMFYUI, MUTATIONS, ROOT, host_version, later_inputs, pack, start_host
from .standalone import script

__all__ = ["COMFYUI", "MUTATIONS", "ROOT", "host_version", "later_inputs", "pack", "script", "start_host"]

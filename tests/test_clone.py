"""Case 63. The suite runs whole in a plain clone: whatever its path, and with nothing from outside of it."""

import re
import shlex
from pathlib import Path

from kindred_testing import ROOT
from kindred_testing.compiling import linkable


def test_what_is_compiled_is_linked_from_a_path_with_a_space(tmp_path, monkeypatch):
    from torch._inductor.cpp_builder import CppBuilder, CppTorchOptions
    from torch.utils import cpp_extension

    spaced = tmp_path / "a path with a space"
    spaced.symlink_to(cpp_extension.TORCH_LIB_PATH, target_is_directory=True)
    monkeypatch.setattr(cpp_extension, "TORCH_LIB_PATH", str(spaced))
    with linkable():
        command = CppBuilder("x", str(tmp_path / "x.cpp"), CppTorchOptions(), output_dir=str(tmp_path)).get_command_line()
        folders = [Path(part[2:]) for part in shlex.split(command) if part.startswith("-L")]
        assert any(list(folder.glob("*torch_cpu*")) for folder in folders), command
    assert not {"path", "with", "a", "space"} & set(shlex.split(command))
    assert str(spaced) == cpp_extension.TORCH_LIB_PATH


def test_no_test_reads_a_file_from_outside_of_the_clone():
    """A test that skips where a folder beside the repository is missing passes nowhere else."""
    outside = re.compile(r"ROOT\.parent\b|SHARED")
    found = [str(path) for path in (ROOT / "tests").rglob("*.py") if path.name != Path(__file__).name and outside.search(path.read_text("utf-8"))]
    assert found == []

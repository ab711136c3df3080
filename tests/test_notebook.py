import os
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from nuclei_utils import notebook


def executed(*sources):
    """Execute cells in a kernel of this Python as a reader would, and return them."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    document = nbformat.v4.new_notebook(cells=cells)
    # With the first, the kernel would not show what the process itself writes. The second no reader has set.
    hidden = {"PYTEST_CURRENT_TEST", "TF_CPP_MIN_LOG_LEVEL"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["JUPYTER_PREFER_ENV_PATH"] = "1"
    NotebookClient(document, kernel_name="python3", allow_errors=True).execute(env=environment)
    return document.cells


def test_a_notebook_starts_with_one_line_and_without_the_messages_of_tensorflow():
    start, failing = executed(
        "from nuclei_utils import notebook\n\nnotebook.start()",
        "import os\n\nwith notebook.quiet_stderr():\n    os.write(2, b'the reason')\n    1 / 0",
    )
    (output,) = start.outputs
    assert output.name == "stdout"
    assert len(output.text.splitlines()) == 1
    assert "".join(output.text for output in failing.outputs if output.get("name") == "stderr") == "the reason"
    assert failing.outputs[-1].ename == "ZeroDivisionError"


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ("os.write(2, b'by the process'); print('by Python', file=sys.stderr)", "after"),
        ("os.write(2, b'by the process'); sys.exit(1)", "by the process"),
    ],
    ids=["goes well", "fails"],
)
def test_messages_are_shown_only_if_the_block_fails(body, seen):
    lines = ["import os, sys", "from nuclei_utils import notebook", "with notebook.quiet_stderr():", f"    {body}"]
    code = "\n".join([*lines, "os.write(2, b'after')"])
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stderr == seen


@pytest.mark.skipif(sys.platform == "win32", reason="closes a descriptor in the way of a POSIX shell")
def test_a_process_without_standard_error_can_start():
    code = "from nuclei_utils import notebook\nwith notebook.quiet_stderr():\n    print('went on')"
    command = f'exec "{sys.executable}" -c "$0" 2>&-'
    ran = subprocess.run(["sh", "-c", command, code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "went on\n")


def test_goal_is_shown_with_its_description():
    name = min(path.name for path in notebook.PICTURES.iterdir())
    (cell,) = executed(f"from nuclei_utils import notebook\nnotebook.show_goal({name!r}, alt='five rows of images')")
    (output,) = cell.outputs
    assert output.data["text/plain"] == "five rows of images"
    assert output.metadata["image/jpeg"]["alt"] == "five rows of images"
    assert output.data["image/jpeg"].startswith("/9j/")  # how a JPEG file begins, in base64


def test_unknown_goal_is_refused_with_the_names_of_those_there_are():
    name = min(path.name for path in notebook.PICTURES.iterdir())
    with pytest.raises(FileNotFoundError, match=f"no_such.jpg .*{name}"):
        notebook.show_goal("no_such.jpg", alt="")

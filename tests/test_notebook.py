import os
import subprocess
import sys

import keras
import nbformat
import pytest
from nbclient import NotebookClient

from nuclei_utils import notebook

PICTURES = sorted(path.name for path in notebook.PICTURES.iterdir())
IMPORT = "from nuclei_utils import notebook"


def execute(*sources):
    """Execute cells in a kernel of this Python as a learner would, and return the cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    document = nbformat.v4.new_notebook(cells=cells)
    # With the first variable the kernel does not show the output of the process. A learner does not set the second.
    hidden = {"PYTEST_CURRENT_TEST", "TF_CPP_MIN_LOG_LEVEL"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["JUPYTER_PREFER_ENV_PATH"] = "1"
    NotebookClient(document, kernel_name="python3", allow_errors=True).execute(env=environment)
    return document.cells


def test_start_prints_one_line_and_shows_other_messages_only_if_it_fails():
    start, failing, after, growth = execute(
        f"{IMPORT}\n\nnotebook.start()",
        "import os\nimport sys\nfrom nuclei_utils import training\n\n"
        "def profile():\n    os.write(2, b'by the process')\n    print('by Python', file=sys.stderr)\n    1 / 0\n\n"
        "training.profile = profile\nnotebook.start()",
        "os.write(2, b'after')",
        "print(os.environ['TF_FORCE_GPU_ALLOW_GROWTH'])",
    )
    (output,) = start.outputs
    assert output.name == "stdout"
    assert len(output.text.splitlines()) == 1
    for word in (keras.__version__, "device: ", "sample", "smoke"):
        assert word in output.text
    shown = "".join(output.text for output in failing.outputs if output.get("name") == "stderr")
    assert "by the process" in shown
    assert "by Python" in shown
    assert failing.outputs[-1].ename == "ZeroDivisionError"
    assert "after" in str(after.outputs), "standard error is restored"
    assert growth.outputs[0].text == "true\n", "several processes can share a GPU"


def test_start_hides_tensorflows_advice_about_retracing_only():
    logger = "import logging\nlogger = logging.getLogger('tensorflow')\n"
    *_, warnings = execute(
        f"{IMPORT}\n\nnotebook.start()",
        f"{logger}logger.warning('calls triggered tf.function retracing')\nlogger.warning('another warning')",
    )
    assert "another warning" in str(warnings.outputs)
    assert "retracing" not in str(warnings.outputs)


@pytest.mark.skipif(sys.platform == "win32", reason="closes a file descriptor as a POSIX shell does")
def test_start_works_without_standard_error():
    code = f"{IMPORT}\nnotebook.start()"
    run = subprocess.run(["sh", "-c", f'exec "{sys.executable}" -c "$0" 2>&-', code], capture_output=True, text=True)
    assert run.returncode == 0
    assert run.stdout.startswith("nuclei_utils ")


def test_goal_picture_has_a_description():
    (cell,) = execute(f"{IMPORT}\nnotebook.show_goal({PICTURES[0]!r}, alt='five rows of images')")
    (output,) = cell.outputs
    assert output.data["text/plain"] == output.metadata["image/jpeg"]["alt"] == "five rows of images"
    assert output.data["image/jpeg"].startswith("/9j/")  # the first bytes of a JPEG file, in base64


def test_unknown_goal_picture_is_refused_with_the_known_names():
    with pytest.raises(FileNotFoundError, match=f"no_such.jpg .*{PICTURES[0]}"):
        notebook.show_goal("no_such.jpg", alt="")

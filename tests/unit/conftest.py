import pytest

from kd_plugin.losses.engine import dispatch as engine

WORDS = [f"word{i}" for i in range(28)]  # with fairseq's four special symbols: 32


@pytest.fixture
def dictionaries(tmp_path):
    """A folder with equal dict.en.txt and dict.de.txt: all that building a translation model needs of its data."""
    return write_dictionaries(tmp_path / "data", WORDS)


def write_dictionaries(folder, words):
    folder.mkdir(parents=True, exist_ok=True)
    for lang in ("en", "de"):
        (folder / f"dict.{lang}.txt").write_text("".join(f"{word} 1\n" for word in words))
    return folder


@pytest.fixture(scope="module", params=["compiled", "pytorch"])
def cpu_engine(request):
    """Runs a module's tests twice: with the kernels compiled for CPUs, and with PyTorch's operations instead."""
    if request.param == "compiled":
        if engine.kernels_for("cpu") is None:
            pytest.skip("numba is not installed")
        yield request.param
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "kernels_for", lambda device_type: None)
        yield request.param

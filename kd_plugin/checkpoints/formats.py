"""Recognises files and folders of other programs by their content, where a checkpoint is expected."""

import json
import os
import re
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

HEAD = 4096  # bytes to look at
TORCH_PICKLE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first bytes of torch.save before torch 1.6


class Foreign(NamedTuple):
    """What something is (continues "is"), and what the user can do."""

    what: str
    remedy: str


class Looked(NamedTuple):
    """A file: its first HEAD bytes, its last 8, and its size."""

    path: str
    head: bytes
    tail: bytes
    size: int


Test = Callable[[Looked], bool]
WANTED = "give the .pt file that fairseq-train saved"
ORIGINAL = "give a .pt file that fairseq-train saved; models of other programs are not supported"
HUGGING_FACE_FOLDER = (
    "give a .pt file that fairseq-train saved; Hugging Face folders of translation models work only as teachers "
    "(--teacher-path, kd-plugin cache, vocabulary, doctor)"
)
CONVERTED = "give the .pt file that it was made from"
AGAIN = "fetch it again, and compare its size and sha256 with the original"


def _packed(name: str, command: str) -> Foreign:
    return Foreign(f"packed with {name}", f"{command}, then {WANTED}")


MARIAN = Foreign("a Marian model (.npz)", ORIGINAL)
TORCHSCRIPT = Foreign("a TorchScript archive, which contains a program", CONVERTED)
CTRANSLATE2_FILE = Foreign("the weights of a CTranslate2 model", f"{CONVERTED}; kd-plugin evaluate takes its folder")
CTRANSLATE2_FOLDER = Foreign(
    "a CTranslate2 model", f"{CONVERTED}; kd-plugin evaluate and CTranslate2 take such folders"
)
SAFETENSORS = Foreign(
    "a safetensors file: weights without fairseq's configuration", "give the .pt file that they were taken from"
)


def _archive(path: str) -> Optional[Foreign]:
    """Recognises a zip file; torch.save puts its pickle in a folder inside."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # torch will raise an error
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        return TORCHSCRIPT
    if any(re.match(r"[^/]+/data\.pkl$", name) for name in names):
        return None
    if any(name in ("special:model.yml.npy", "encoder_Wemb.npy", "Wemb.npy") or "_l1_self_" in name for name in names):
        return MARIAN
    if names and all(name.endswith(".npy") for name in names):
        return Foreign("an archive of NumPy arrays (.npz)", ORIGINAL)
    if any(name.endswith(".weights.h5") for name in names):
        return Foreign("a Keras model", ORIGINAL)
    return Foreign("a zip archive, but not from torch.save", f"unzip it, then {WANTED}")


def _is_safetensors(file: Looked) -> bool:
    head = file.head
    return len(head) > 8 and head[8:9] == b"{" and 2 <= struct.unpack("<Q", head[:8])[0] <= file.size - 8


def is_ctranslate2(head: bytes) -> bool:
    """Whether a file begins like CTranslate2's model.bin, with a version and the name of a model specification."""
    if len(head) < 8:
        return False
    version, length = struct.unpack("<IH", head[:6])
    name = head[6 : 6 + length]
    return 1 <= version < 100 and re.match(rb"\w+Spec\x00$", name) is not None


def _is_marian_binary(file: Looked) -> bool:
    if len(file.head) < 48:
        return False
    version, tensors = struct.unpack("<QQ", file.head[:16])
    return version == 1 and 0 < tensors < 10_000 and b"_Wemb" in file.head + file.tail or b"encoder_l1" in file.head


def _begins(*beginnings: bytes) -> Test:
    return lambda file: file.head.startswith(beginnings)


def _fits(pattern: bytes) -> Test:
    return lambda file: re.match(pattern, file.head) is not None


def _is_named(pattern: str) -> Test:
    """Tests the name, for files whose content is not distinctive."""
    return lambda file: re.search(pattern, file.path) is not None


# the first match counts
FILES: Tuple[Tuple[Test, Foreign], ...] = (
    (_is_safetensors, SAFETENSORS),  # first, because it begins with a length, which can look like anything
    (
        _begins(b"version https://git-lfs.github.com/spec/"),
        Foreign("a Git LFS pointer, not the file itself", "git lfs pull"),
    ),
    (_begins(b"GGUF"), Foreign("a GGUF model (llama.cpp)", ORIGINAL)),
    (_begins(b"lmgg", b"tjgg"), Foreign("a GGML model (llama.cpp)", ORIGINAL)),
    (_begins(b"\x89HDF\r\n\x1a\n"), Foreign("an HDF5 file (Keras, TensorFlow)", ORIGINAL)),
    (_begins(b"\x93NUMPY"), Foreign("a NumPy array (.npy)", ORIGINAL)),
    (_begins(b"\x1f\x8b"), _packed("gzip", "gunzip it, or tar -xzf")),
    (_begins(b"\xfd7zXZ\x00"), _packed("xz", "unxz it, or tar -xJf")),
    (_begins(b"BZh"), _packed("bzip2", "bunzip2 it, or tar -xjf")),
    (_begins(b"\x28\xb5\x2f\xfd"), _packed("zstd", "unzstd it")),
    (_begins(b"\x04\x22\x4d\x18"), _packed("lz4", "unlz4 it")),
    (_begins(b"7z\xbc\xaf\x27\x1c"), _packed("7-Zip", "7z x")),
    (_begins(b"Rar!"), _packed("RAR", "unrar it")),
    (_begins(b"MMIDIDX\x00\x00", b"TNTIDX\x00\x00"), Foreign("an index of binarised text, not a model", WANTED)),
    (_begins(b"PAR1"), Foreign("a Parquet table", WANTED)),
    (_begins(b"ARROW1"), Foreign("an Arrow table", WANTED)),
    (_begins(b"SQLite format 3\x00"), Foreign("an SQLite database", WANTED)),
    (_begins(b"%PDF"), Foreign("a PDF document", WANTED)),
    (_begins(b"\x89PNG", b"\xff\xd8\xff"), Foreign("an image", WANTED)),
    (_begins(b"\x7fELF"), Foreign("a program or library", WANTED)),
    (_begins(struct.pack("<i", 793712314)), Foreign("a fastText model", ORIGINAL)),
    (lambda file: is_ctranslate2(file.head), CTRANSLATE2_FILE),
    (_is_marian_binary, MARIAN._replace(what="a Marian model (.bin)")),
    (_fits(rb"(?s)....TFL3"), Foreign("a TensorFlow Lite model", ORIGINAL)),
    (
        lambda file: file.tail == struct.pack("<Q", 0xDB4775248B80FB57),
        Foreign("the index of a TensorFlow checkpoint", ORIGINAL),
    ),
    (
        _fits(rb"(?s)\n.{0,63}<(unk|pad|s)>"),
        Foreign("a SentencePiece model, which segments text", f"{WANTED}; --sentencepiece-model takes this one"),
    ),
    (_fits(rb"\x08[\x01-\x1f][\x12\x1a:B]"), Foreign("an ONNX model", ORIGINAL)),
    (
        lambda file: file.size > len(TORCH_PICKLE) and re.match(rb"\x80[\x02-\x05]", file.head) is not None,
        Foreign("a Python pickle that torch.save did not write", WANTED),
    ),
    (_is_named(r"\.onnx$"), Foreign("an ONNX model", ORIGINAL)),
    (_is_named(r"\.(data-\d+-of-\d+|ckpt\.(index|meta)|pb)$"), Foreign("a part of a TensorFlow model", ORIGINAL)),
    (_is_named(r"\.msgpack$"), Foreign("Flax (JAX) weights", ORIGINAL)),
    (_is_named(r"\.nemo$"), Foreign("an NVIDIA NeMo model", ORIGINAL)),
    (_is_named(r"\.(mlmodel|mar|engine|plan|params)$"), Foreign("a model of another program", ORIGINAL)),
    (
        lambda file: not file.head.strip(b"\x00"),
        Foreign("nothing but zero bytes: an interrupted download or copy", AGAIN),
    ),
    (  # torch < 0.4 saved such files; there was an attack on torch's reader for them (CVE-2025-32434)
        lambda file: tarfile.is_tarfile(file.path),
        Foreign(
            "a tar archive",
            f"unpack it, then {WANTED}; the old tar format of torch < 0.4 must be saved again with a newer torch",
        ),
    ),
)


def foreign_file(path: str) -> Optional[Foreign]:
    """What a file is if it must not be passed to torch.load; None: it may be a checkpoint."""
    size = os.path.getsize(path)
    if size == 0:
        return Foreign("an empty file: truncated, damaged or never written", AGAIN)
    with open(path, "rb") as file:
        head = file.read(HEAD)
        file.seek(max(0, size - 8))
        looked = Looked(path, head, file.read(8), size)
    if head.startswith(TORCH_PICKLE):
        return None
    if head.startswith(b"PK"):
        return _archive(path)
    return next((foreign for test, foreign in FILES if test(looked)), None) or _text(head)


def _text(head: bytes) -> Optional[Foreign]:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Foreign("a text file (UTF-16)", WANTED)
    try:
        # the last character may be truncated
        text = head[:-3].decode("utf-8") if len(head) == HEAD else head.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if any(ord(character) < 32 and character not in "\t\n\r\f" for character in text):
        return None
    begins = text.lstrip("\ufeff \t\r\n").lower()
    if begins.startswith(("<!doctype html", "<html")):
        return Foreign("a web page, perhaps the error page of a download", AGAIN)
    if begins.startswith(("{", "[")):
        return Foreign("a JSON file", WANTED)
    return Foreign("a text file", WANTED)


def foreign_folder(path: str) -> Optional[Foreign]:
    """What a folder is if it holds another kind of model; None: unknown."""
    names = sorted(os.listdir(path))
    if not names:
        return Foreign("an empty folder", WANTED)
    if holds_ctranslate2(path):
        return CTRANSLATE2_FOLDER
    config = _json(path, "config.json")
    kind = config.get("model_type") or next(iter(_strings(config.get("architectures"))), None)
    weights = {"pytorch_model.bin", "model.safetensors", "tf_model.h5", "flax_model.msgpack"}
    weights |= {f"{name}.index.json" for name in weights}
    if _json(path, "kd_plugin.json").get("kind") == "safetensors":
        return Foreign("a model that kd-plugin export wrote as safetensors", CONVERTED)
    if kind is not None or weights & set(names):
        return Foreign(f"a Hugging Face model{f' ({kind})' if kind else ''}", HUGGING_FACE_FOLDER)
    if "adapter_config.json" in names:
        return Foreign("a Hugging Face PEFT adapter", ORIGINAL)
    if "saved_model.pb" in names or any(re.search(r"\.data-\d+-of-\d+$", name) for name in names):
        return Foreign("a TensorFlow model", ORIGINAL)
    if any(name.endswith(".npz") for name in names):
        return MARIAN._replace(what="a folder with NumPy arrays (.npz), the format of Marian models")
    if any(re.match(r"dict\..*txt$|.*\.idx$", name) for name in names):
        return Foreign("a folder of binarised data", f"{WANTED}; it is in the training's --save-dir")
    if any(name.endswith(".distcp") for name in names):
        return Foreign("a torch.distributed checkpoint in several parts", "merge it into one file first")
    return None


def holds_ctranslate2(path: str) -> bool:
    """Whether a folder is a CTranslate2 model, by its model.bin or, if that is damaged, by the files beside it."""
    model = Path(path) / "model.bin"
    if not model.is_file():
        return False
    with open(model, "rb") as file:
        if is_ctranslate2(file.read(HEAD)):
            return True
    return any(Path(path).glob("*vocabulary.*"))


def _json(folder: str, name: str) -> Dict[str, Any]:
    try:
        content = json.loads((Path(folder) / name).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _strings(value: Any) -> List[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []

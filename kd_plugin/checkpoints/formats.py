"""What was given where a checkpoint is wanted: files and folders of other programs, told by their content."""

import json
import os
import re
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

HEAD = 4096  # bytes that are looked at
TORCH_PICKLE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began its files before torch 1.6


class Foreign(NamedTuple):
    """What something is (follows "is"), and what its owner can do."""

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
ORIGINAL = "give a .pt file that fairseq-train saved; models of another program are not read"
HUGGING_FACE_FOLDER = (
    "give a .pt file that fairseq-train saved; folders of translation models are read as teachers alone "
    "(--teacher-path, kd-plugin cache, vocabulary, doctor)"
)
CONVERTED = "give the .pt file that it was made from"
AGAIN = "fetch it again, and compare its size and sha256 with the original"


def _packed(name: str, command: str) -> Foreign:
    return Foreign(f"packed with {name}", f"{command}, then {WANTED}")


MARIAN = Foreign("a model of Marian (.npz)", ORIGINAL)
TORCHSCRIPT = Foreign("a TorchScript archive, which holds a program", CONVERTED)
CTRANSLATE2_FILE = Foreign("the weights of a CTranslate2 model", f"{CONVERTED}; kd-plugin evaluate takes its folder")
CTRANSLATE2_FOLDER = Foreign(
    "a CTranslate2 model", f"{CONVERTED}; kd-plugin evaluate and CTranslate2 take such folders"
)
SAFETENSORS = Foreign(
    "a file of safetensors: weights without fairseq's configuration", "give the .pt file that they were taken from"
)


def _archive(path: str) -> Optional[Foreign]:
    """A zip file; one of torch.save has its pickle in a folder of its own."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # torch says so
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        return TORCHSCRIPT
    if any(re.match(r"[^/]+/data\.pkl$", name) for name in names):
        return None
    if any(name in ("special:model.yml.npy", "encoder_Wemb.npy", "Wemb.npy") or "_l1_self_" in name for name in names):
        return MARIAN
    if names and all(name.endswith(".npy") for name in names):
        return Foreign("an archive of NumPy arrays (.npz)", ORIGINAL)
    if any(name.endswith(".weights.h5") for name in names):
        return Foreign("a model of Keras", ORIGINAL)
    return Foreign("a zip archive, and not one of torch.save", f"unzip it, then {WANTED}")


def _is_safetensors(file: Looked) -> bool:
    head = file.head
    return len(head) > 8 and head[8:9] == b"{" and 2 <= struct.unpack("<Q", head[:8])[0] <= file.size - 8


def is_ctranslate2(head: bytes) -> bool:
    """Whether a file begins as CTranslate2's model.bin: its version, and the name of what follows."""
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
    """Where the content does not tell."""
    return lambda file: re.search(pattern, file.path) is not None


# the first that fits
FILES: Tuple[Tuple[Test, Foreign], ...] = (
    (_is_safetensors, SAFETENSORS),  # before all others: it begins with a length, which can look like anything
    (
        _begins(b"version https://git-lfs.github.com/spec/"),
        Foreign("a pointer of Git LFS, not the file itself", "git lfs pull"),
    ),
    (_begins(b"GGUF"), Foreign("a model in the format GGUF (llama.cpp)", ORIGINAL)),
    (_begins(b"lmgg", b"tjgg"), Foreign("a model in the format GGML (llama.cpp)", ORIGINAL)),
    (_begins(b"\x89HDF\r\n\x1a\n"), Foreign("an HDF5 file (Keras, TensorFlow)", ORIGINAL)),
    (_begins(b"\x93NUMPY"), Foreign("an array of NumPy (.npy)", ORIGINAL)),
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
    (_begins(b"\x89PNG", b"\xff\xd8\xff"), Foreign("a picture", WANTED)),
    (_begins(b"\x7fELF"), Foreign("a program or library", WANTED)),
    (_begins(struct.pack("<i", 793712314)), Foreign("a model of fastText", ORIGINAL)),
    (lambda file: is_ctranslate2(file.head), CTRANSLATE2_FILE),
    (_is_marian_binary, MARIAN._replace(what="a model of Marian (.bin)")),
    (_fits(rb"(?s)....TFL3"), Foreign("a model of TensorFlow Lite", ORIGINAL)),
    (
        lambda file: file.tail == struct.pack("<Q", 0xDB4775248B80FB57),
        Foreign("the index of a TensorFlow checkpoint", ORIGINAL),
    ),
    (
        _fits(rb"(?s)\n.{0,63}<(unk|pad|s)>"),
        Foreign("a model of SentencePiece, which segments text", f"{WANTED}; --sentencepiece-model takes this one"),
    ),
    (_fits(rb"\x08[\x01-\x1f][\x12\x1a:B]"), Foreign("a model in the format ONNX", ORIGINAL)),
    (
        lambda file: file.size > len(TORCH_PICKLE) and re.match(rb"\x80[\x02-\x05]", file.head) is not None,
        Foreign("a pickle of Python that torch.save did not write", WANTED),
    ),
    (_is_named(r"\.onnx$"), Foreign("a model in the format ONNX", ORIGINAL)),
    (_is_named(r"\.(data-\d+-of-\d+|ckpt\.(index|meta)|pb)$"), Foreign("a part of a TensorFlow model", ORIGINAL)),
    (_is_named(r"\.msgpack$"), Foreign("weights of Flax (JAX)", ORIGINAL)),
    (_is_named(r"\.nemo$"), Foreign("a model of NVIDIA NeMo", ORIGINAL)),
    (_is_named(r"\.(mlmodel|mar|engine|plan|params)$"), Foreign("a model of another program", ORIGINAL)),
    (
        lambda file: not file.head.strip(b"\x00"),
        Foreign("nothing but zero bytes: a download or copy that was broken off", AGAIN),
    ),
    (  # torch < 0.4 saved such files; torch's reader of them has been attacked (CVE-2025-32434)
        lambda file: tarfile.is_tarfile(file.path),
        Foreign(
            "a tar archive",
            f"unpack it, then {WANTED}; the old tar format of torch < 0.4 has to be saved again by a newer torch",
        ),
    ),
)


def foreign_file(path: str) -> Optional[Foreign]:
    """What a file is that torch.load is not to be given; None: perhaps a checkpoint."""
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
        # the last character may be cut
        text = head[:-3].decode("utf-8") if len(head) == HEAD else head.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if any(ord(character) < 32 and character not in "\t\n\r\f" for character in text):
        return None
    begins = text.lstrip("\ufeff \t\r\n").lower()
    if begins.startswith(("<!doctype html", "<html")):
        return Foreign("a web page: perhaps the error page of a download", AGAIN)
    if begins.startswith(("{", "[")):
        return Foreign("a JSON file", WANTED)
    return Foreign("a text file", WANTED)


def foreign_folder(path: str) -> Optional[Foreign]:
    """What a folder is that holds a model of another kind; None: nobody knows."""
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
        return Foreign(f"a model of Hugging Face{f' ({kind})' if kind else ''}", HUGGING_FACE_FOLDER)
    if "adapter_config.json" in names:
        return Foreign("an adapter of Hugging Face's PEFT", ORIGINAL)
    if "saved_model.pb" in names or any(re.search(r"\.data-\d+-of-\d+$", name) for name in names):
        return Foreign("a TensorFlow model", ORIGINAL)
    if any(name.endswith(".npz") for name in names):
        return MARIAN._replace(what="a folder with arrays of NumPy (.npz), as Marian saves models")
    if any(re.match(r"dict\..*txt$|.*\.idx$", name) for name in names):
        return Foreign("a folder of binarised data", f"{WANTED}; it lies in the training's --save-dir")
    if any(name.endswith(".distcp") for name in names):
        return Foreign("a checkpoint of torch.distributed in parts", "put it together in one file first")
    return None


def holds_ctranslate2(path: str) -> bool:
    """Whether a folder is a CTranslate2 model: by its model.bin, or by the files beside one that is damaged."""
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

"""The flags of `kd-plugin decode --engine http`, and which flags go with which engine."""

import argparse

from kd_plugin.corpus.subwords import SubwordOptions
from kd_plugin.decoding.base import FolderOptions, ModelOptions, Settings
from kd_plugin.decoding.http.options import APIS, HttpOptions
from kd_plugin.errors import KDPluginError

ASKED = ("source_lang", "target_lang", "nbest", "max_len_b", "sampling", "sampling_topp", "temperature")
# flags that a server does not support: with --engine http they are refused rather than ignored
NOT_FOR_SERVERS = (
    *("data", "gen_subset", "compute_type", "max_tokens"),
    *(
        name
        for options in (ModelOptions, FolderOptions, SubwordOptions, Settings)
        for name in options._fields
        if name not in ASKED
    ),
)


def add_http(parser: argparse.ArgumentParser) -> None:
    """The fields of decoding.http.options.HttpOptions. Flags that are not given are absent from args."""
    default = HttpOptions()
    group = parser.add_argument_group("--engine http")
    for name, metavar, kind, text in (
        ("url", "URL", str, "an OpenAI-compatible server (vLLM, llama.cpp, Ollama, TGI, an API): http://HOST:PORT/v1"),
        ("model", "NAME", str, "the model, as the server calls it"),
        (
            "prompt",
            "FILE",
            str,
            "the prompt template, with {source}, and {source_lang} and {target_lang} for the languages' names; write "
            "other braces twice (default: a prompt that asks only for the translation)",
        ),
        ("few-shot", "FILE", str, "examples to show before every sentence: source TAB translation"),
        ("source-name", "NAME", str, "for {source_lang} (default: the English name of --source-lang)"),
        ("target-name", "NAME", str, "for {target_lang} (default: the English name of --target-lang)"),
        (
            "extra-body",
            "JSON",
            str,
            "more fields for each request, such as '{\"top_k\": 20}'; null removes one of the defaults",
        ),
        ("api-key-env", "NAME", str, "the environment variable with the server's key (default: no key is sent)"),
        ("concurrency", "N", int, f"simultaneous requests per worker (default: {default.concurrency})"),
        ("timeout", "S", float, f"seconds per request (default: {default.timeout:g})"),
        (
            "retries",
            "N",
            int,
            "how often a request is repeated after a fault, after random delays of up to 0.5, 1, 2, … 60 s, and never "
            f"before the time that Retry-After names (default: {default.retries})",
        ),
        (
            "max-answer-ratio",
            "R",
            float,
            "reject an answer that is longer than this many times its source, both measured by their characters "
            f"(default: {default.max_answer_ratio:g})",
        ),
        (
            "expect-script",
            "NAME[,NAME…]",
            str,
            "reject answers with fewer than half of their letters in these scripts, by Unicode name (LATIN, CYRILLIC, "
            "CJK)",
        ),
    ):
        group.add_argument(f"--{name}", metavar=metavar, type=kind, default=argparse.SUPPRESS, help=text)
    group.add_argument(
        "--api",
        choices=tuple(APIS),
        default=argparse.SUPPRESS,
        help="chat: /chat/completions; completions: /completions, for models without instruction tuning (default: "
        f"{default.api})",
    )
    group.add_argument(
        "--logprobs",
        action="store_true",
        default=argparse.SUPPRESS,
        help="ask for log-probabilities; a translation's score is their mean per token",
    )


def check_engine(args: argparse.Namespace) -> None:
    """Refuse flags that the engine would ignore."""
    if args.engine == "http":
        for name in NOT_FOR_SERVERS:
            if getattr(args, name, None) is not None:
                remedy = "--extra-body '{\"top_k\": N}', if the server supports it" if name == "sampling_topk" else ""
                raise KDPluginError(
                    f"{'DATA' if name == 'data' else flag_of(name)}: is not for --engine http. Remedy: "
                    f"{remedy or 'leave it out'}"
                )
        return
    for name in HttpOptions._fields:
        if hasattr(args, name):
            raise KDPluginError(f"{flag_of(name)}: only for --engine http. Remedy: add --engine http, or leave it out")
    if args.path is None:
        raise KDPluginError("kd-plugin decode: no model. Remedy: --path, or --engine http with --url and --model")


def flag_of(name: str) -> str:
    """The flag of an attribute of args."""
    return f"--{name.replace('_', '-')}"

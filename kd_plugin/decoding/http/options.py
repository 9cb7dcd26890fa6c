"""The flags of `--engine http`, and what they refuse before any work."""

import json
import os
import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple
from urllib.parse import urlsplit

from kd_plugin.corpus.scripts import check_scripts
from kd_plugin.decoding.base import Settings
from kd_plugin.errors import KDPluginError
from kd_plugin.files.json_text import parse_json

APIS = {"chat": "chat/completions", "completions": "completions"}
# fields of a request that the engine itself decides
OURS = ("model", "messages", "prompt", "stream", "logprobs", "seed")


class HttpOptions(NamedTuple):
    """Which server to ask, how, and which of its answers to keep.

    url: of the API, up to and including /v1
    prompt, few_shot: files
    extra_body: JSON, more fields of every request
    api_key_env: the environment variable that holds the key
    concurrency: requests at the same time, of each worker
    timeout: seconds for one request
    retries: how often a request is repeated after a fault
    max_answer_ratio: length of an answer over that of its source, both as `corpus.languages.amount` has it
    expect_script: names of scripts, as `corpus.scripts.script_of` has them
    """

    url: Optional[str] = None
    model: Optional[str] = None
    api: str = "chat"
    prompt: Optional[str] = None
    few_shot: Optional[str] = None
    source_name: Optional[str] = None
    target_name: Optional[str] = None
    extra_body: str = "{}"
    api_key_env: Optional[str] = None
    concurrency: int = 16
    timeout: float = 120.0
    retries: int = 8
    logprobs: bool = False
    max_answer_ratio: float = 4.0
    expect_script: Optional[str] = None

    def check(self) -> None:
        """Refuse what no request can be made of; nothing is sent."""
        if self.model is None:
            raise KDPluginError("--engine http: no model. Remedy: --model NAME, as the server calls it")
        self.endpoint()
        self.key()
        self.extra()
        check_scripts("--expect-script", self.scripts)

    def endpoint(self) -> str:
        """The address that requests go to."""
        if self.url is None:
            raise KDPluginError("--engine http: no server. Remedy: --url http://HOST:PORT/v1")
        remedy = "Remedy: an address such as http://localhost:8000/v1"
        try:
            parts = urlsplit(self.url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            known = False
        if "@" in self.url.partition("://")[2].partition("/")[0]:
            # not shown: it holds a password
            raise KDPluginError("--url: holds a user's name or password. Remedy: --api-key-env, the name of a variable")
        if not known or re.search(r"\s", self.url):
            raise KDPluginError(f"--url {self.url}: is no address of a server. {remedy}")
        path = parts.path.rstrip("/") or "/v1"
        if path.endswith("/completions"):
            raise KDPluginError(f"--url {self.url}: names an endpoint. Remedy: the address up to /v1, and --api")
        return parts._replace(path=f"{path}/{APIS[self.api]}", fragment="").geturl()

    def key(self) -> Optional[str]:
        """The key in the environment variable that the flag names."""
        if self.api_key_env is None:
            return None
        value = os.environ.get(self.api_key_env, "").strip()
        if not value or not value.isascii() or not value.isprintable() or " " in value:
            # a user who gives the key itself must not find it in a log
            name = self.api_key_env if re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env) else "…"
            state = "is not set" if not value else "holds what no key can be"
            raise KDPluginError(
                f"--api-key-env {name}: that environment variable {state}. Remedy: export it in this shell; the flag "
                "takes its name, and never the key"
            )
        return value

    def extra(self) -> Dict[str, Any]:
        """Further fields of each request; null takes one of ours out."""
        try:
            content = parse_json(self.extra_body)
            json.dumps(content, allow_nan=False)
        except ValueError as error:
            raise KDPluginError(
                f"--extra-body: no JSON ({error}). Remedy: an object such as '{{\"top_k\": 20}}'"
            ) from error
        if not isinstance(content, dict):
            raise KDPluginError("--extra-body: no JSON object. Remedy: an object such as '{\"top_k\": 20}'")
        for name in OURS:
            if name in content:
                raise KDPluginError(f"--extra-body: {name} is what kd-plugin itself fills in. Remedy: leave it out")
        return content

    @property
    def scripts(self) -> List[str]:
        """Upper case, as Unicode has them."""
        return [name.strip() for name in self.expect_script.upper().split(",")] if self.expect_script else []

    def languages(self, source: Optional[str], target: Optional[str]) -> List[str]:
        """The codes, which nothing but the flags can tell."""
        if source is None or target is None:
            raise KDPluginError("--engine http: a server does not tell its languages. Remedy: -s LANG -t LANG")
        return [source, target]


def check_search(search: Settings) -> None:
    """Refuse numbers that do not go together; flags that the protocol has no word for are refused in the cli."""
    if search.sampling:
        return
    if search.nbest > 1:
        raise KDPluginError(f"--nbest {search.nbest}: without draws all of them are one. Remedy: add --sampling")
    given: Tuple[Tuple[str, bool], ...] = (
        ("--temperature", search.temperature != Settings().temperature),
        ("--sampling-topp", search.sampling_topp > 0),
    )
    for flag, is_given in given:
        if is_given:
            raise KDPluginError(f"{flag}: of no effect without --sampling. Remedy: add --sampling, or leave it out")

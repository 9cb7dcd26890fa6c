"""The flags of `--engine http`, and their checks before any work."""

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
# fields of a request that the engine itself sets
OURS = ("model", "messages", "prompt", "stream", "logprobs", "seed")


class HttpOptions(NamedTuple):
    """Which server to ask, how, and which of its answers to keep.

    url: the API's, up to and including /v1
    prompt, few_shot: files
    extra_body: JSON object with more fields for every request
    api_key_env: the environment variable that contains the key
    concurrency: simultaneous requests per worker
    timeout: seconds per request
    retries: how often a request is repeated after a fault
    max_answer_ratio: length of an answer divided by that of its source, both measured by `corpus.languages.amount`
    expect_script: names of scripts, as in `corpus.scripts.script_of`
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
        """Refuse flags from which no request can be built; nothing is sent."""
        if self.model is None:
            raise KDPluginError("--engine http: no model. Remedy: --model NAME, as the server calls it")
        self.endpoint()
        self.key()
        self.extra()
        check_scripts("--expect-script", self.scripts)

    def endpoint(self) -> str:
        """The address for requests."""
        if self.url is None:
            raise KDPluginError("--engine http: no server. Remedy: --url http://HOST:PORT/v1")
        remedy = "Remedy: use an address such as http://localhost:8000/v1"
        try:
            parts = urlsplit(self.url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            known = False
        if "@" in self.url.partition("://")[2].partition("/")[0]:
            # not shown: it contains a password
            raise KDPluginError("--url: contains a user name or password. Remedy: --api-key-env with a variable's name")
        if not known or re.search(r"\s", self.url):
            raise KDPluginError(f"--url {self.url}: is not the address of a server. {remedy}")
        path = parts.path.rstrip("/") or "/v1"
        if path.endswith("/completions"):
            raise KDPluginError(f"--url {self.url}: names an endpoint. Remedy: give the address up to /v1, and --api")
        return parts._replace(path=f"{path}/{APIS[self.api]}", fragment="").geturl()

    def key(self) -> Optional[str]:
        """The key in the environment variable that the flag names."""
        if self.api_key_env is None:
            return None
        value = os.environ.get(self.api_key_env, "").strip()
        if not value or not value.isascii() or not value.isprintable() or " " in value:
            # if a user gives the key itself, it must not appear in a log
            name = self.api_key_env if re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env) else "…"
            state = "is not set" if not value else "does not contain a key"
            raise KDPluginError(
                f"--api-key-env {name}: that environment variable {state}. Remedy: export it in this shell; the flag "
                "takes its name, not the key"
            )
        return value

    def extra(self) -> Dict[str, Any]:
        """Additional fields of each request; null removes one of ours."""
        try:
            content = parse_json(self.extra_body)
            json.dumps(content, allow_nan=False)
        except ValueError as error:
            raise KDPluginError(
                f"--extra-body: not JSON ({error}). Remedy: give an object such as '{{\"top_k\": 20}}'"
            ) from error
        if not isinstance(content, dict):
            raise KDPluginError("--extra-body: not a JSON object. Remedy: give an object such as '{\"top_k\": 20}'")
        for name in OURS:
            if name in content:
                raise KDPluginError(f"--extra-body: {name} is set by kd-plugin itself. Remedy: leave it out")
        return content

    @property
    def scripts(self) -> List[str]:
        """The scripts' names in upper case, as in Unicode."""
        return [name.strip() for name in self.expect_script.upper().split(",")] if self.expect_script else []

    def languages(self, source: Optional[str], target: Optional[str]) -> List[str]:
        """The language codes, which only the flags can give."""
        if source is None or target is None:
            raise KDPluginError("--engine http: a server does not name its languages. Remedy: -s LANG -t LANG")
        return [source, target]


def check_search(search: Settings) -> None:
    """Refuse numbers that do not fit together; flags that the protocol does not support are refused in the cli."""
    if search.sampling:
        return
    if search.nbest > 1:
        raise KDPluginError(f"--nbest {search.nbest}: without draws, all would be equal. Remedy: add --sampling")
    given: Tuple[Tuple[str, bool], ...] = (
        ("--temperature", search.temperature != Settings().temperature),
        ("--sampling-topp", search.sampling_topp > 0),
    )
    for flag, is_given in given:
        if is_given:
            raise KDPluginError(f"{flag}: of no effect without --sampling. Remedy: add --sampling, or leave it out")

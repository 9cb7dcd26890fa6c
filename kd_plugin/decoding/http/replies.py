"""Parsing a server's reply: its choices and tokens, or its error."""

import json
import math
from email.utils import parsedate_to_datetime
from typing import Any, Dict, List, NamedTuple, Optional

from kd_plugin.decoding.http.answers import Choice

# finish_reason when a model ends its answer itself; TGI uses its own names
ENDS = ("stop", "eos_token", "stop_sequence", "end_turn", "eos")
LONGEST_WORDS = 300  # characters of a server's message to show in an error


class Malformed(ValueError):
    """A reply that is not an answer, or an incomplete one; says why."""


class Reply(NamedTuple):
    """choices: in the server's order; *_tokens: the server's counts, 0 if it gives none"""

    choices: List[Choice]
    prompt_tokens: int
    answer_tokens: int


def read_reply(body: bytes) -> Reply:
    """Parses a reply from /chat/completions or /completions.

    Raises:
        Malformed: it is not JSON, or does not follow the protocol
    """
    content = _object(body)
    if not content.get("choices") or not isinstance(content["choices"], list):
        words = server_words(body)
        raise Malformed(f"no choices in it{': ' + words if 'error' in content and words else ''}")
    usage = content.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    choices = [_choice(choice) for choice in content["choices"]]
    return Reply(choices, _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


def _object(body: bytes) -> Dict[str, Any]:
    try:
        content = json.loads(body.decode("utf-8"))
    except RecursionError as error:
        raise Malformed("too many nested brackets") from error
    except ValueError as error:  # invalid UTF-8 too
        raise Malformed(f"not JSON ({error})" if body else "an empty reply") from error
    if not isinstance(content, dict):
        raise Malformed("not a JSON object")
    return content


def _choice(choice: Any) -> Choice:
    if not isinstance(choice, dict):
        raise Malformed("a choice is not an object")
    message = choice.get("message", choice)
    if not isinstance(message, dict):
        raise Malformed("a message is not an object")
    text = message.get("content" if message is not choice else "text")
    reason = choice.get("finish_reason")
    if message.get("refusal") or reason == "content_filter":
        return Choice("", "refusal")
    if text is not None and not isinstance(text, str):
        raise Malformed("an answer is not text")
    if reason != "length" and reason not in ENDS:
        raise Malformed(f"it ends with finish_reason {str(reason)[:40]}, so it may be incomplete")
    return Choice(text or "", "length" if reason == "length" else "stop", _mean(choice.get("logprobs")))


def _mean(logprobs: Any) -> Optional[float]:
    """The mean log-probability, from either protocol: a list of tokens with their logprob, or a list of numbers."""
    if not isinstance(logprobs, dict):
        return None
    values = logprobs.get("token_logprobs")
    if values is None:
        tokens = logprobs.get("content")
        values = [token.get("logprob") if isinstance(token, dict) else None for token in tokens or ()]
    if not isinstance(values, list) or not values:
        return None
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        return None
    return math.fsum(values) / len(values)


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**40 else 0


def server_words(body: bytes) -> str:
    """A server's error message, in one line; empty: none."""
    text = body.decode("utf-8", "replace")
    try:
        content: Any = _object(body)
    except Malformed:
        return _line(text)
    for name in ("error", "detail", "message"):
        content = content.get(name, content) if isinstance(content, dict) else content
    return _line(content if isinstance(content, str) else json.dumps(content))


def error_code(body: bytes) -> str:
    """The protocol's name of an error, such as context_length_exceeded; empty: none."""
    try:
        error = _object(body).get("error")
    except Malformed:
        return ""
    return str((error.get("code") or error.get("type") or "") if isinstance(error, dict) else "")


def _line(text: str) -> str:
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_WORDS else f"{text[:LONGEST_WORDS]}…"


def seconds_to_wait(header: Optional[str], now: float) -> Optional[float]:
    """The seconds that a Retry-After header (seconds or a date) asks to wait; None: it cannot be parsed.

    Args:
        now: in seconds since the epoch
    """
    if header is None:
        return None
    try:
        wait = float(header)
    except ValueError:
        try:
            wait = parsedate_to_datetime(header).timestamp() - now
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, wait) if math.isfinite(wait) else None

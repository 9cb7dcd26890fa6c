"""`--engine http`: sentences are sent to a server one by one, many at a time; answers are checked and journalled."""

import asyncio
import collections
import hashlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Counter, Dict, Iterator, List, Sequence, Tuple

from kd_plugin.corpus.hypotheses import Hypothesis
from kd_plugin.corpus.sources import Sentence, TextSource
from kd_plugin.corpus.subwords import Subwords
from kd_plugin.decoding.engine import Answer, Engine
from kd_plugin.decoding.http.answers import FAILED, REASONS, REJECTED, TOO_LONG, Choice, Rules, fault_of, translation_in
from kd_plugin.decoding.http.journal import Entry, Journal, journal_path, remove_finished
from kd_plugin.decoding.http.options import HttpOptions, check_search
from kd_plugin.decoding.http.prompt import open_prompt
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of

if TYPE_CHECKING:
    from kd_plugin.decoding.decode import Corpus
    from kd_plugin.decoding.http.client import Client

WITHOUT = "lines_without_good_answer"
UNSCORED = "translations_without_score"
PROMPT_TOKENS, ANSWER_TOKENS = "prompt_tokens", "answer_tokens"
GIVE_UP = 20  # sentences in a row that the server rejects or fails on: the sentences are not the cause
WARN = 100  # answers rejected in a row

logger = logging.getLogger(__name__)


class _GivenUp(Exception):
    """The server does not work. places: those of the sentences that failed"""

    def __init__(self, places: List[int], why: str):
        super().__init__(why)
        self.places = places


class HttpEngine(Engine):
    """A model behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama, TGI, or an API.

    Args:
        number: the worker's
    """

    counted = (TOO_LONG, REJECTED, FAILED, WITHOUT, *REASONS, UNSCORED, PROMPT_TOKENS, ANSWER_TOKENS)

    def __init__(self, args: "Corpus", number: int):
        _check_libraries()
        options: HttpOptions = args.http
        check_search(args.search)
        options.check()
        if args.input is None:
            raise KDPluginError("DATA: a server reads text, not symbols. Remedy: --input FILE with the raw text")
        self._args, self._options = args, options
        self.languages = options.languages(args.models.source_lang, args.models.target_lang)
        self._prompt = open_prompt(options, self.languages)
        self._rules, self._extra = Rules(options.max_answer_ratio, options.scripts, self.languages[1]), options.extra()
        self.source = TextSource(args.input, Subwords(None, "none"))
        self._streak = 0  # sentences without an answer since the last answered one
        self._row: List[int] = []  # the places of those in the current shard
        self._why, self._left_out = "", 0
        self._is_good = False  # whether any sentence got an answer
        self._said: Counter[str] = collections.Counter()
        self._run: Counter[str] = collections.Counter()  # for this run only, for the summary
        self._faults: Counter[str] = collections.Counter()
        self._seconds, self._prepared = 0.0, time.monotonic()

    def identity(self) -> Dict[str, Any]:
        """As Engine's. The address is not part of it, as a server may move; neither is the key."""
        search, options = self._args.search, self._options
        found = {
            "engine": "http",
            "api": options.api,
            "model": options.model,
            "prompt": self._prompt.identity(),
            "extra_body": self._extra,
            "nbest": search.nbest,
            "max_len_b": search.max_len_b,
            "logprobs": options.logprobs,
            "max_answer_ratio": options.max_answer_ratio,
            "expect_script": options.scripts,
        }
        if search.sampling:
            drawn = ("temperature", "sampling_topp")
            found["sampling"] = {"seed": self._args.seed, **{name: getattr(search, name) for name in drawn}}
        return found

    def prepare(self) -> None:
        """As Engine's."""
        remove_finished(Path(self._args.to.output))
        self._prepared = time.monotonic()

    def __call__(self, sentences: Sequence[Sentence], shard: int, progress: Callable[[int], Any]) -> List[Answer]:
        """As Engine's."""
        begin, self._row = time.monotonic(), []
        with Journal(Path(self._args.to.output), shard, self._identity_sha256, len(sentences)) as journal:
            self._is_good = self._is_good or any(entry.lost is None for entry in journal.entries.values())
            progress(len(journal.entries))
            todo = [place for place in range(len(sentences)) if place not in journal.entries]
            try:
                asyncio.run(self._ask_all(sentences, todo, shard, journal, progress))
                if self._row and not self._is_good:
                    raise _GivenUp(self._row, self._why)
            except _GivenUp as error:
                journal.forget(error.places)
                raise KDPluginError(
                    f"--url {self._options.url}: no answer to {self._streak} sentences in a row; the last time: "
                    f"{error}. Remedy: fix the server or the flags, then run the same command again; answers so far "
                    "are kept"
                ) from error
            finally:
                self._seconds += time.monotonic() - begin
            return [self._answer(journal.entries[place]) for place in range(len(sentences))]

    def written(self, shard: int) -> None:
        """As Engine's: the journal is no longer needed."""
        journal_path(Path(self._args.to.output), shard).unlink(missing_ok=True)

    def summary(self) -> str:
        """As Engine's."""
        run, seconds = self._run, self._seconds
        if not self._args.job.is_here:
            return f"{self._options.url}: {time.monotonic() - self._prepared:,.1f} s of all workers together"
        if not run["sentences"]:
            return ""
        faults = ", ".join(f"{kind} {count:,}" for kind, count in sorted(self._faults.items()))
        return (
            f"{self._options.url}: {run['sentences']:,} sentences in {run['requests']:,} requests and {seconds:,.1f} s "
            f"({run['sentences'] / max(seconds, 1e-9):,.1f} sentences/s); {run[PROMPT_TOKENS]:,} prompt tokens and "
            f"{run[ANSWER_TOKENS]:,} answer tokens" + (f"; faults: {faults}" if faults else "")
        )

    @property
    def _identity_sha256(self) -> str:
        """Digest of all that determines the entry at a place in a shard."""
        return digest_of([self.identity(), self.languages, self.source.identity(), self._args.shard_sentences])

    async def _ask_all(
        self,
        sentences: Sequence[Sentence],
        todo: Sequence[int],
        shard: int,
        journal: Journal,
        progress: Callable[[int], Any],
    ) -> None:
        from kd_plugin.decoding.http.client import Client

        async def work(places: Iterator[int]) -> None:
            for place in places:
                entry = await self._ask(client, sentences[place].text, shard, place)
                journal.add(entry)
                progress(1)
                self._look_at(entry)

        client = Client(self._options)
        async with client:
            shared = iter(todo)
            workers = [asyncio.ensure_future(work(shared)) for _ in range(min(self._options.concurrency, len(todo)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                self._run["requests"] += client.requests
                self._faults.update(client.faults)

    async def _ask(self, client: "Client", source: str, shard: int, place: int) -> Entry:
        """All answers to a sentence. Servers that give only one per request are asked again for the others."""
        from kd_plugin.decoding.http.client import NoAnswer

        choices: List[Choice] = []
        tokens = [0, 0]
        wanted = self._args.search.nbest
        try:
            while len(choices) < wanted:
                reply = await client.ask(self._body(source, wanted - len(choices), shard, place, len(choices)))
                choices += reply.choices[: wanted - len(choices)]
                tokens = [tokens[0] + reply.prompt_tokens, tokens[1] + reply.answer_tokens]
        except NoAnswer as error:
            self._why = str(error)
            if not self._said[error.name]:
                logger.warning("%s: the first one is %r: %s", error.name, source[:60], error)
            self._said[error.name] += 1
            lost, faults = (error.name, []) if error.name not in REASONS else (None, [error.name] * wanted)
            return Entry(place, [], [], faults, lost, tokens)
        judged = [(choice, fault_of(choice, source, self._rules)) for choice in choices]
        kept = [Hypothesis(*translation_in(choice)) for choice, fault in judged if fault is None]
        if all(one.score is not None for one in kept):
            kept.sort(key=lambda one: -(one.score or 0.0))
        faults = [fault for _, fault in judged if fault is not None]
        return Entry(place, [one.text for one in kept], [one.score for one in kept], faults, None, tokens)

    def _body(self, source: str, wanted: int, shard: int, place: int, have: int) -> Dict[str, Any]:
        """A request. have: number of answers from earlier requests, so that draws differ"""
        search, options = self._args.search, self._options
        body: Dict[str, Any] = {"model": options.model, "max_tokens": search.max_len_b, "temperature": 0}
        if options.api == "chat":
            body["messages"] = self._prompt.messages(source)
        else:
            body.update(prompt=self._prompt.completion(source), stop=["\n"])
        if search.sampling:
            # seeded by what distinguishes this draw from others: it depends neither on their order nor on a restart
            text = f"{self._args.seed} {shard} {place} {have}"
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1
            body.update(temperature=search.temperature, seed=seed)
            if search.sampling_topp > 0:
                body["top_p"] = search.sampling_topp
        if wanted > 1:
            body["n"] = wanted
        if options.logprobs:
            body["logprobs"] = True if options.api == "chat" else 1
        return {name: value for name, value in {**body, **self._extra}.items() if value is not None}

    def _look_at(self, entry: Entry) -> None:
        """Stop if the server fails persistently, warn if its answers are rejected persistently."""
        self._run.update({"sentences": 1, PROMPT_TOKENS: entry.tokens[0], ANSWER_TOKENS: entry.tokens[1]})
        if entry.lost in (REJECTED, FAILED):
            self._streak += 1
            self._row.append(entry.place)
            if self._streak >= GIVE_UP:
                raise _GivenUp(self._row, self._why)
        elif entry.lost is None:
            self._streak, self._row, self._is_good = 0, [], True
            self._left_out = 0 if entry.texts else self._left_out + len(entry.faults)
            if self._left_out >= WARN and not self._said["row"]:
                self._said["row"] += 1
                logger.warning("%s answers in a row were rejected; the last one: %s", self._left_out, entry.faults[-1])

    def _answer(self, entry: Entry) -> Answer:
        hypotheses = [Hypothesis(text, score) for text, score in zip(entry.texts, entry.scores)]
        lines: Tuple[str, ...] = () if entry.lost is None else (entry.lost,)
        if not hypotheses and entry.lost is None:
            lines = (WITHOUT,)
        unscored = sum(one.score is None for one in hypotheses) if self._options.logprobs else 0
        amounts = {PROMPT_TOKENS: entry.tokens[0], ANSWER_TOKENS: entry.tokens[1]}
        return Answer(hypotheses, lines, (*entry.faults, *(UNSCORED,) * unscored), amounts)


def _check_libraries() -> None:
    try:
        import httpx  # noqa: F401
        import tenacity  # noqa: F401
    except ImportError as error:
        raise KDPluginError(f"--engine http: {error}. Remedy: pip install 'kd-plugin[http]'") from error

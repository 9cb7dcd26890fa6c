#!/usr/bin/env python3
"""Write a small English→German corpus of numbers, dates, times, prices and measures.

Nothing is downloaded and nothing is invented: the words are num2words' spelled numbers, the formats and the names of
units and currencies are the Unicode CLDR's as shipped in Babel, and both sides of a pair state the same value. The only
text written here is the handful of connecting words in PHRASES and APPROXIMATORS.

The task is small enough for a CPU and still needs translating: clocks turn from 12 to 24 hours, days change place with
months, decimal points become commas, German says units before tens and writes a spelled number as one word, ordinals
are declined.

    quickstart_corpus.py OUT_DIR [--train 40000] [--valid 1000] [--test 1000] [--misaligned 0.3]
"""

import argparse
import datetime
import os
import random
from typing import Callable, Dict, List, Sequence, Set, Tuple

from babel.dates import format_date, format_datetime, format_interval, format_time, format_timedelta
from babel.lists import format_list
from babel.numbers import format_currency, format_decimal, format_percent
from babel.units import format_unit
from num2words import num2words

Pair = Tuple[str, str]  # the same thing said in English and in German
EN, DE = "en_US", "de_DE"

UNITS = (
    "length-kilometer length-meter length-centimeter length-millimeter length-mile length-foot length-inch "
    "length-nautical-mile length-light-year area-square-kilometer area-square-meter area-hectare volume-liter "
    "volume-milliliter volume-cubic-meter volume-teaspoon volume-tablespoon volume-cup volume-gallon mass-tonne "
    "mass-kilogram mass-gram mass-milligram mass-pound mass-ounce speed-kilometer-per-hour speed-meter-per-second "
    "speed-mile-per-hour speed-knot temperature-celsius temperature-fahrenheit duration-year duration-month "
    "duration-week duration-day duration-hour duration-minute duration-second duration-century duration-decade "
    "digital-terabyte digital-gigabyte digital-megabyte digital-kilobyte energy-kilowatt-hour energy-kilocalorie "
    "energy-joule power-watt power-kilowatt power-megawatt power-horsepower electric-volt electric-ampere "
    "frequency-hertz frequency-megahertz pressure-bar pressure-hectopascal angle-degree graphics-pixel light-lumen "
    "consumption-liter-per-100-kilometer concentr-permille"
).split()
CURRENCIES = "EUR USD GBP JPY CHF PLN SEK NOK DKK CZK HUF INR BRL CAD AUD CNY KRW TRY MXN ZAR".split()
SPELLED_CURRENCIES = "EUR USD GBP".split()  # the ones num2words can spell in both languages

# CLDR has no prepositions. {0} and {1} are whole expressions, chosen so that German needs no further declension.
PHRASES: Dict[str, Sequence[Pair]] = {
    "quantity": (
        ("from {0} to {1}", "von {0} bis {1}"),
        ("{0} instead of {1}", "{0} statt {1}"),
        ("either {0} or {1}", "entweder {0} oder {1}"),
        ("neither {0} nor {1}", "weder {0} noch {1}"),
        ("first {0}, then {1}", "erst {0}, dann {1}"),
    ),
    "price": (
        ("{0} for {1}", "{0} für {1}"),
        ("{1} cost {0}", "{1} kosten {0}"),
        ("{1} for only {0}", "{1} für nur {0}"),
    ),
    "moment": (("{0}: {1}", "{0}: {1}"),),
    "date": (
        ("{1} since {0}", "{1} seit {0}"),
        ("{1} as of {0}", "{1}, Stand {0}"),
        ("valid until {0}: {1}", "gültig bis {0}: {1}"),
    ),
}
APPROXIMATORS: Sequence[Pair] = (
    ("about", "etwa"),
    ("almost", "fast"),
    ("more than", "mehr als"),
    ("less than", "weniger als"),
    ("at least", "mindestens"),
    ("at most", "höchstens"),
    ("exactly", "genau"),
    ("only", "nur"),
)


def both(render: Callable[[str], str]) -> Pair:
    """Call `render` once for each locale."""
    return render(EN), render(DE)


def spell(number: float, **options: str) -> Pair:
    return num2words(number, lang="en", **options), num2words(number, lang="de", **options)


def magnitude(rng: random.Random, digits: int) -> int:
    """A whole number with any length up to `digits`; drawn uniformly by value, nearly all would be long.

    Starts at 2, because German declines one by gender.
    """
    return rng.randrange(2, 10 ** rng.randint(1, digits))


def decimal(rng: random.Random, digits: int) -> float:
    return rng.randrange(11, 10 ** rng.randint(2, digits)) / rng.choice((10, 100))


def random_moment(rng: random.Random) -> datetime.datetime:
    start = datetime.datetime(1900, 1, 1)
    return start + datetime.timedelta(days=rng.randrange(200 * 365), minutes=rng.randrange(24 * 60))


# --- things that can be counted -----------------------------------------------------------------------------------


def cardinal(rng: random.Random) -> Pair:
    return spell(magnitude(rng, 6))


def spelled_decimal(rng: random.Random) -> Pair:
    return spell(decimal(rng, 5))


def figure(rng: random.Random) -> Pair:
    value = rng.choice((magnitude(rng, 7), decimal(rng, 7)))
    return both(lambda locale: format_decimal(value, locale=locale))


def percentage(rng: random.Random) -> Pair:
    value = rng.randrange(2, 1000) / 1000
    return both(lambda locale: format_percent(value, "#,##0.#%" if locale == EN else "#,##0.# %", locale=locale))


def measure(rng: random.Random) -> Pair:
    unit = rng.choice(UNITS)
    length = rng.choice(("long", "long", "short"))
    value = rng.choice((magnitude(rng, 4), decimal(rng, 5)))
    return both(lambda locale: format_unit(value, unit, length, locale=locale))


def spelled_measure(rng: random.Random) -> Pair:
    unit, value = rng.choice(UNITS), magnitude(rng, 4)
    figures = both(lambda locale: format_decimal(value, locale=locale))
    texts = both(lambda locale: format_unit(value, unit, "long", locale=locale))
    words = spell(value)
    return texts[0].replace(figures[0], words[0], 1), texts[1].replace(figures[1], words[1], 1)


# --- prices -------------------------------------------------------------------------------------------------------


def price(rng: random.Random) -> Pair:
    currency = rng.choice(CURRENCIES)
    form = rng.choice(("standard", "name", "name"))
    value = rng.choice((magnitude(rng, 5), rng.randrange(200, 10 ** rng.randint(3, 7)) / 100))
    return both(lambda locale: format_currency(value, currency, locale=locale, format_type=form))


def spelled_price(rng: random.Random) -> Pair:
    value = magnitude(rng, 4) + rng.randrange(2, 100) / 100
    return spell(value, to="currency", currency=rng.choice(SPELLED_CURRENCIES))


# --- points in time -----------------------------------------------------------------------------------------------


def date(rng: random.Random) -> Pair:
    day, form = random_moment(rng), rng.choice(("medium", "long", "full", "full"))
    return both(lambda locale: format_date(day, form, locale=locale))


def date_and_time(rng: random.Random) -> Pair:
    moment, form = random_moment(rng), rng.choice(("{1} 'at' {0}", "{1}, {0}"))
    length = rng.choice(("long", "full"))

    def render(locale: str) -> str:
        joined = form.replace("'at'", "at" if locale == EN else "um")
        return joined.format(format_time(moment, "short", locale=locale), format_date(moment, length, locale=locale))

    return render(EN), render(DE)


def clock(rng: random.Random) -> Pair:
    moment = random_moment(rng)
    return both(lambda locale: format_time(moment, "short", locale=locale))


def spelled_clock(rng: random.Random) -> Pair:
    moment = random_moment(rng).replace(minute=rng.randrange(2, 60))
    period = format_datetime(moment, "a", locale=EN)
    hour, minute = spell(moment.hour % 12 or 12)[0], spell(moment.minute)
    hour_de = num2words(moment.hour, lang="de") if moment.hour != 1 else "ein"
    return f"{hour} {minute[0]} {period}", f"{hour_de} Uhr {minute[1]}"


def spelled_date(rng: random.Random) -> Pair:
    day = random_moment(rng)
    english, german = spell(day.day, to="ordinal")
    months = both(lambda locale: format_date(day, "MMMM", locale=locale))
    years = spell(day.year, to="year") if rng.random() < 0.7 else ("", "")
    if rng.random() < 0.5:
        pair = (f"the {english} of {months[0]} {years[0]}", f"der {german} {months[1]} {years[1]}")
    else:  # the dative only adds an n
        pair = (f"on the {english} of {months[0]} {years[0]}", f"am {german}n {months[1]} {years[1]}")
    return pair[0].strip(), pair[1].strip()


def year(rng: random.Random) -> Pair:
    return spell(rng.randrange(1100, 2100), to="year")


def ordinal(rng: random.Random) -> Pair:
    english, german = spell(magnitude(rng, 5), to="ordinal")
    return rng.choice(((f"the {english}", f"der {german}"), (f"on the {english}", f"am {german}n")))


def period(rng: random.Random) -> Pair:
    start = random_moment(rng).date()
    end = start + datetime.timedelta(days=magnitude(rng, 3))
    skeleton = rng.choice(("yMMMd", "yMMMM"))
    return both(lambda locale: format_interval(start, end, skeleton, locale=locale))


def relative(rng: random.Random) -> Pair:
    seconds, most = rng.choice(((60, 59), (3600, 23), (86400, 6), (7 * 86400, 3), (31 * 86400, 11), (366 * 86400, 99)))
    delta = datetime.timedelta(seconds=rng.choice((-1, 1)) * seconds * rng.randint(2, most))
    return both(lambda locale: format_timedelta(delta, add_direction=True, threshold=1, locale=locale))


QUANTITIES = (cardinal, spelled_decimal, figure, percentage, measure, measure, spelled_measure, spelled_measure)
PRICES = (price, price, spelled_price)
DATES = (date, date, date_and_time, clock, spelled_clock, year)  # fit after a preposition
MOMENTS = DATES + (spelled_date, spelled_date, ordinal, period, relative)


def quantity(rng: random.Random) -> Pair:
    english, german = rng.choice(QUANTITIES + PRICES)(rng)
    if rng.random() < 0.25:
        word_en, word_de = rng.choice(APPROXIMATORS)
        return f"{word_en} {english}", f"{word_de} {german}"
    return english, german


def moment(rng: random.Random) -> Pair:
    return rng.choice(MOMENTS)(rng)


def join(phrase: Pair, first: Pair, second: Pair) -> Pair:
    return phrase[0].format(first[0], second[0]), phrase[1].format(first[1], second[1])


def phrase(rng: random.Random) -> Pair:
    """One line: a single expression, or two or three combined."""
    kind = rng.choice(("single", "quantity", "price", "moment", "date", "list"))
    if kind == "single":
        return rng.choice((quantity, moment))(rng)
    if kind == "list":
        parts = [rng.choice((quantity, moment))(rng) for _ in range(rng.randint(2, 3))]
        style = rng.choice(("standard", "or"))
        return (
            format_list([part[0] for part in parts], style, locale=EN),
            format_list([part[1] for part in parts], style, locale=DE),
        )
    firsts = {"quantity": (quantity,), "price": PRICES, "moment": MOMENTS, "date": DATES}
    first = rng.choice(firsts[kind])(rng)
    second = rng.choice((measure, spelled_measure) if kind == "price" else (quantity,))(rng)
    return join(rng.choice(PHRASES[kind]), first, second)


def plain_spaces(text: str) -> str:
    """Replaces CLDR's no-break and narrow spaces, which neither sentencepiece nor a terminal handles well."""
    return " ".join(text.split())


def generate(count: int, seed: int) -> List[Pair]:
    """`count` pairs without repeated lines in either language, so that no split can leak into another."""
    rng = random.Random(seed)
    pairs: List[Pair] = []
    seen: Tuple[Set[str], Set[str]] = (set(), set())
    while len(pairs) < count:
        english, german = phrase(rng)
        pair = plain_spaces(english), plain_spaces(german)
        if pair[0] != pair[1] and pair[0] not in seen[0] and pair[1] not in seen[1]:
            seen[0].add(pair[0])
            seen[1].add(pair[1])
            pairs.append(pair)
    return pairs


def split(pairs: Sequence[Pair], sizes: Dict[str, int]) -> Dict[str, List[Pair]]:
    """Splits the lines into consecutive parts; they were drawn independently, so there is no need to shuffle."""
    parts, start = {}, 0
    for name, size in sizes.items():
        parts[name] = list(pairs[start : start + size])
        start += size
    return parts


def misalign(pairs: Sequence[Pair], share: float, seed: int) -> List[Pair]:
    """Gives a share of the lines the German of another such line, like alignment errors in a crawled corpus.

    The set of German lines stays the same, so that nothing can leak from another split.
    """
    chosen = sorted(random.Random(seed).sample(range(len(pairs)), round(share * len(pairs))))
    slipped = list(pairs)
    for line, other in zip(chosen, chosen[1:] + chosen[:1]):
        slipped[line] = (pairs[line][0], pairs[other][1])
    return slipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir")
    parser.add_argument("--train", type=int, default=40000)
    parser.add_argument("--valid", type=int, default=1000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--misaligned", type=float, default=0.0, help="share of wrong pairs in train; never elsewhere")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    # The held-out sets come first, so that they do not change with --train.
    sizes = {"test": args.test, "valid": args.valid, "train": args.train}
    os.makedirs(args.out_dir, exist_ok=True)
    there = [name for name in os.listdir(args.out_dir) if name.rpartition(".")[0] in sizes]
    if there:
        raise SystemExit(f"{args.out_dir}: {there[0]} already exists; name another folder")
    parts = split(generate(sum(sizes.values()), args.seed), sizes)
    parts["train"] = misalign(parts["train"], args.misaligned, args.seed)
    for name, pairs in parts.items():
        for side, language in enumerate(("en", "de")):
            with open(os.path.join(args.out_dir, f"{name}.{language}"), "w", encoding="utf-8") as lines:
                lines.writelines(pair[side] + "\n" for pair in pairs)


if __name__ == "__main__":
    main()

"""Personal data and secrets in a text: where they are and of which kind.

What can be checked is checked: a card by its Luhn digit, a bank account and a national number by the rules of its
country, a phone number by the numbering plan, an address of the internet by being public.
"""

import functools
import importlib
import ipaddress
import re
from collections.abc import Callable, Iterator
from types import ModuleType

from tasks.errors import ConfigError

Span = tuple[int, int]
"""Start and end in a text, in characters."""

KINDS = ["secret", "email", "iban", "card", "national_id", "ip", "phone"]
"""What can be looked for, in the order of looking: the digits of a card are not taken for those of a phone."""

_EMAIL = re.compile(
    r"(?<![\w.%+-])[A-Za-z0-9][\w.%+-]{0,63}"
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![\w@-])"
)
_RESERVED_DOMAIN = re.compile(r"(?i)@(?:.*\.)?(?:example(?:\.(?:com|org|net|edu))?|test|invalid|localhost|local)\Z")
_IMPERSONAL = re.compile(r"(?i)(?:git|no-?reply|do-?not-?reply|user(?:name)?|your[._-]?(?:name|email)?|name|email)@")
"""Of nobody: a repository, a machine, or the place of an address that is still to be filled in."""

_CARD = re.compile(
    r"(?<![\w.,$€£/-])(?:\d{4}([ -]?)\d{4}\1\d{4}\1\d{1,7}|3\d{3}([ -]?)\d{6}\2\d{4,5})(?![\w/-]|[.,]\d)"
)
_CARD_ISSUER = re.compile(r"4|5[1-5]|2[2-7]|3[47]|3[068]|35|6011|64[4-9]|65|62")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_IP = re.compile(
    r"(?<![\w.:-])(?:(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:]|\.\d))"
)
_NUMBERED = re.compile(r"(?i)\b(?:version|ver|v|release|firmware|build|section|chapter|paragraph|§)[ .:#]*\Z")
"""What stands before a number that only looks like an address."""

_SECRET = re.compile(
    r"""(?x)
    (?<![\w-]) (?:
      (?:AKIA|ASIA)[0-9A-Z]{16}                                   # AWS
      | gh[pousr]_[A-Za-z0-9]{36,255} | github_pat_\w{60,255}     # GitHub
      | glpat-[\w-]{20,255}                                       # GitLab
      | xox[abeoprs]-[\w-]{10,255}                                # Slack
      | https://hooks\.slack\.com/services/T\w{8,12}/B\w{8,12}/\w{20,32}
      | (?:sk|rk)_live_[A-Za-z0-9]{16,255}                        # Stripe
      | sk-(?:(?:proj|svcacct|admin|ant|or)-[\w-]{20,255} | [A-Za-z0-9]{40,64})   # OpenAI, Anthropic, OpenRouter
      | hf_[A-Za-z0-9]{30,64}                                     # Hugging Face
      | AIza[\w-]{35} | ya29\.[\w-]{30,255}                       # Google
      | npm_[A-Za-z0-9]{36} | pypi-AgE[\w-]{50,255}               # npm, PyPI
      | SG\.[\w-]{22}\.[\w-]{43}                                  # SendGrid
      | dop_v1_[0-9a-f]{64}                                       # DigitalOcean
      | eyJ[\w-]{10,4000}\.eyJ[\w-]{10,4000}\.[\w-]{16,4000}      # JSON Web Token
    ) (?![A-Za-z0-9])
    | -----BEGIN\ (?:[A-Z]{2,12}\ ){0,3}PRIVATE\ KEY(?:\ BLOCK)?-----
      (?:(?:[^-]|-(?!-)){0,20000}-----END\ (?:[A-Z]{2,12}\ ){0,3}PRIVATE\ KEY(?:\ BLOCK)?-----)?
    """
)
"""Keys and tokens by the shapes that their makers gave them; those in a maker's own documentation say EXAMPLE."""

_NATIONAL = {
    "us.ssn": r"\d{3}-\d{2}-\d{4}",
    "br.cpf": r"\d{3}\.\d{3}\.\d{3}-\d{2}",
    "cl.rut": r"\d{1,2}\.\d{3}\.\d{3}-[\dK]",
    "mx.curp": r"[A-Z]{4}\d{6}[A-Z]{6}[A-Z0-9]\d",
    "es.dni": r"\d{8}-[A-Z]",
    "es.nie": r"[XYZ]\d{7}-?[A-Z]",
    "it.codicefiscale": r"[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z]",
    "fr.nir": r"[12] ?\d{2} ?\d{2} ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}",
    "be.nn": r"\d{2}\.\d{2}\.\d{2}-\d{3}[.-]\d{2}",
    "fi.hetu": r"\d{6}[-+A-F]\d{3}[0-9A-Y]",
    "se.personnummer": r"(?:\d{2})?\d{6}[-+]\d{4}",
    "ch.ssn": r"756\.\d{4}\.\d{4}\.\d{2}",
    "cn.ric": r"\d{17}[\dX]",
    "in_.aadhaar": r"\d{4} \d{4} \d{4}",
    "in_.pan": r"[A-Z]{3}P[A-Z]\d{4}[A-Z]",
    "kr.rrn": r"\d{6}-[1-8]\d{6}",
}
"""Modules of python-stdnum, each with the shape in which its number is written where it is one.

Numbers of bare digits with one check digit (such as the Dutch BSN) are left out: one in ten of any digits passes.
"""
_ANY_NATIONAL = re.compile(rf"(?<![\w.=*/+-])(?:{'|'.join(_NATIONAL.values())})(?![\w=*/+-])")

_HINTS = (
    r"\d[\d ().‐-―/-]{5}|\d\.\d{1,3}\.\d",
    r"@|:[0-9A-Fa-f]{0,4}:|[A-Z]{5}\d\d",
    r"AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|xox[abeoprs]-|hooks\.slack|k_live_|sk-|hf_|AIza|ya29|npm_|pypi-|SG\.|"
    r"dop_v1|eyJ|-----BEGIN",
)
HINT = "|".join(_HINTS)
"""What every text matches that holds something to find; looking for it is fast."""


def find(text: str, kinds: tuple[str, ...], phone_region: str = "") -> str:
    """The first of `kinds` that stands in `text`, or ""; raises ConfigError for a kind or a region that is unknown.

    Phone numbers are found in international form (+49 …); with `phone_region`, a country such as US, in its own too.
    """
    for kind in _checked(kinds, phone_region) if _may_hold(text) else ():
        if any(True for _ in _spans(text, kind, phone_region)):
            return kind
    return ""


def mask(text: str, kinds: tuple[str, ...], phone_region: str = "") -> str:
    """`text` with each piece of personal data replaced by its kind, as in [EMAIL]; otherwise as `find`."""
    known = _checked(kinds, phone_region)
    while _may_hold(text) and (masked := _mask_once(text, known, phone_region)) != text:
        text = masked
    return text


def _may_hold(text: str) -> bool:
    return any(re.search(hint, text) for hint in _HINTS)


@functools.cache
def _checked(kinds: tuple[str, ...], phone_region: str) -> tuple[str, ...]:
    """`kinds` in the order in which they are looked for."""
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(f"unknown kind of personal data {unknown[0]!r}; known: {', '.join(KINDS)}")
    if phone_region:
        import phonenumbers

        if phone_region not in phonenumbers.SUPPORTED_REGIONS:
            raise ConfigError(f"phone_region {phone_region!r} is no country of two capital letters, such as US or DE")
    return tuple(kind for kind in KINDS if kind in kinds)


def _mask_once(text: str, kinds: tuple[str, ...], phone_region: str) -> str:
    for kind in kinds:
        parts, end = [], 0
        for start, stop in _spans(text, kind, phone_region):
            parts += [text[end:start], f"[{kind.upper()}]"]
            end = stop
        text = "".join([*parts, text[end:]])
    return text


def _spans(text: str, kind: str, phone_region: str) -> Iterator[Span]:
    return _phones(text, phone_region) if kind == "phone" else _FINDERS[kind](text)


def _emails(text: str) -> Iterator[Span]:
    for match in _EMAIL.finditer(text):
        if not _RESERVED_DOMAIN.search(match.group()) and not _IMPERSONAL.match(match.group()):
            yield match.span()


def _phones(text: str, region: str) -> Iterator[Span]:
    import phonenumbers

    if region or "+" in text:
        # the ten digits of 28980 - 18480 are a valid number in the US, but nobody groups them so
        leniency = phonenumbers.Leniency.STRICT_GROUPING if region else phonenumbers.Leniency.VALID
        for match in phonenumbers.PhoneNumberMatcher(text, region or None, leniency):
            yield match.start, match.end


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match.group())
        if _CARD_ISSUER.match(digits) and _stdnum("luhn").is_valid(digits):
            yield match.span()


def _ibans(text: str) -> Iterator[Span]:
    for match in _IBAN.finditer(text):
        end = match.end()
        while end > match.start() and not _stdnum("iban").is_valid(text[match.start() : end]):
            end = text.rfind(" ", match.start(), end)  # capitals that follow the number look like a part of it
        if end > match.start():
            yield match.start(), end


def _national_ids(text: str) -> Iterator[Span]:
    for match in _ANY_NATIONAL.finditer(text):
        number = match.group()
        shapes = (module for module, shape in _NATIONAL.items() if re.fullmatch(shape, number))
        if any(_stdnum(module).is_valid(number) for module in shapes):
            yield match.span()


def _ips(text: str) -> Iterator[Span]:
    for match in _IP.finditer(text):
        if _is_public(match.group()) and not _NUMBERED.search(text, max(0, match.start() - 20), match.start()):
            yield match.span()


def _is_public(address: str) -> bool:
    """Whether it is an address that one machine on the internet may have; 1.2.3.4 is rather the number of a section."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return ip.is_global and not ip.is_multicast and not re.fullmatch(r"\d(?:\.\d){3}", address)


def _secrets(text: str) -> Iterator[Span]:
    for match in _SECRET.finditer(text):
        if "EXAMPLE" not in match.group():
            yield match.span()


@functools.cache
def _stdnum(module: str) -> ModuleType:
    return importlib.import_module(f"stdnum.{module}")


_FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {
    "email": _emails,
    "card": _cards,
    "iban": _ibans,
    "national_id": _national_ids,
    "ip": _ips,
    "secret": _secrets,
}

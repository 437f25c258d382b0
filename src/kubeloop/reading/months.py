"""Names of months in the languages of Western Europe. Each name means only one month, so the language is not needed."""

import re
import unicodedata

_NAMES = (
    "january|januari|januar|janner|janvier|janeiro|janv|jan|enero|ene|gennaio|gen",
    "february|februari|februar|fevrier|fevereiro|fevr|fev|febrero|febbraio|feb",
    "march|marz|maerz|mars|marzo|marco|maart|marts|mrz|mrt|mar",
    "april|aprile|avril|abril|avr|abr|apr",
    "may|mai|mayo|maggio|mag|maio|mei|maj",
    "june|juni|juin|junio|giugno|giu|junho|jun",
    "july|juli|juillet|juil|julio|luglio|lug|julho|jul",
    "august|augustus|augusti|aout|agosto|aug|ago",
    "september|septembre|septiembre|setiembre|settembre|setembro|sept|sett|sep|set",
    "october|oktober|octobre|octubre|ottobre|outubro|oct|okt|ott|out",
    "november|novembre|noviembre|novembro|nov",
    "december|dezember|decembre|diciembre|dicembre|dezembro|dec|dez|dic",
)
"""The names without accents, by month."""
_BETWEEN = r"(?:[-/., ]|\bde\b|\bdel\b)*"
STEPS = (
    (r"(?i)\b1er\b", "1"),
    *((rf"(?i){_BETWEEN}\b(?:{names})\b{_BETWEEN}", f" {month:02} ") for month, names in enumerate(_NAMES, 1)),
    (r"(?i) +(?:um|at|a las|a|as|alle ore|alle|om|kl) +(\d)", r" \1"),
    (r"(?i)(\d)h(\d\d)\b", r"\1:\2"),
    (r"(?i) Uhr$", ""),
)
"""The patterns that turn `3. März 2020 um 14:30 Uhr` into `3 03 2020 14:30`."""
WEEKDAY = r"^\pL+[.,]* +"


def plain(text: str) -> str:
    """Replace the name of a month in a text by its number."""
    text = "".join(sign for sign in unicodedata.normalize("NFD", text) if not unicodedata.combining(sign))
    for pattern, by in STEPS:
        text = re.sub(pattern, by, text)
    return text.strip()


def numbered(form: str) -> str:
    """Return the format of what `plain` makes of the texts of a format with %b or %B, without their weekday."""
    form = re.sub(r"[-/., ]*%[bB][-/., ]*", " %m ", re.sub("^%[aA],? *", "", form))
    return form.replace(" at ", " ").removesuffix(" Uhr").strip()

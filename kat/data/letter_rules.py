"""What an answer looks like: the patterns by which :mod:`kat.data.letters` finds a stated letter, and their strengths.

RULES is the table of explicit statements; the rest says what may stand around a letter, what joins two, and what takes
a statement back. Every quantifier is bounded, so that no response can make a search slow.
"""

import re

# Characters that only look or format differently, one for one so that spans hold: typographic quotes, full-width
# colon, dashes (as the end of a clause, never a hyphen), and the invisible controls of width and direction.
INVISIBLE = [0xAD, 0x61C, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF]
FOLD = str.maketrans("‘’“”：—–−", "''\"\":;;;") | dict.fromkeys(INVISIBLE, ord(" "))
SPACES = str.maketrans("\n\r\t", "   ")

W = r"\s{0,8}"
NOUN = r"(?:option|choice|answer|letter|number)"
# What may stand around a letter: markdown, quotes, brackets, LaTeX, tags.
OPEN = r"(?:[\s*_`\"'$({\[:;=>~#-]|\\[(\[]|\\(?:boxed|text|textbf|mathbf|mathrm|bf|rm)\b|<\w{1,10}>){0,12}"
CLOSE = r"(?:[*_`\"'$)}\]]|\\[)\]]|</\w{1,10}>){0,8}"
# "answer (to the question) is", "answer:", "**Answer**: "
IS = (
    rf"(?:\s{NOUN}|\skey)?[*_`\"')\]]{{0,3}}(?:\s\([^()\n]{{1,20}}\))?(?:\s(?:to|for|of)\s[^.!?:\n]{{1,80}}?)?"
    rf"(?:,[^,.\n]{{1,25}},)?{W}(?:\b(?:is|are|was|(?:would|should|must|will|could|might|may|has to) be)\b|[:=]|[=-]>)"
)
ANS = r"(?<![\w.])ans(?:\.\s?[:=]?| ?[:=])"
CONCLUDED = r"\b(?:so|therefore|thus|hence|consequently|in conclusion|to conclude|in summary|overall|finally)\b[,:]?"
I_CHOOSE = (
    r"\b(?:(?:i|we)(?:'d|'ll|'m|\s(?:would|will|am))?|let's)"
    r"\s(?:choose|chose|pick|picked|select|selected|go with|going with|opt for)\b|\bi(?:'d|\swould)\ssay\b"
)

# name, strength, anchor, strict, cues. An anchor is searched in the lower-cased text; a letter or an option's text must
# follow it. A stronger statement beats a weaker earlier one. After a strict anchor the letter must end its clause. One
# of the cues stands in whatever the anchor matches: a text without them need not be searched.
CONCLUSIONS = ("so", "therefore", "thus", "hence", "consequently", "conclu", "summary", "overall", "finally")
CHOICE_WORDS = ("option", "choice", "one", "response", "pick", "guess")
CORRECTIONS = ("no", "wait", "sorry", "correction", "actually", "i mean")
CHOICES_MADE = ("choose", "chose", "pick", "select", "go with", "going with", "opt for", "say")
RULES = (
    ("boxed", 3, r"\\(?:boxed|fbox)\b", False, ("boxed", "fbox")),
    ("answer tag", 3, r"<answer>", False, ("<answer>",)),
    ("final answer", 3, rf"\bfinal\W{{1,3}}(?:answer|choice|selection|decision|response)\b{IS}", False, ("final",)),
    ("four hashes", 3, r"(?<![^\n])####", False, ("####",)),
    (
        "concluded answer",
        2,
        rf"{CONCLUDED}{W}(?:the|my|our)?{W}(?:correct|right|best)?{W}{NOUN}{IS}",
        False,
        CONCLUSIONS,
    ),
    ("concluded letter", 2, rf"{CONCLUDED}{W}(?:it{W}(?:is|'s|must be))?", True, CONCLUSIONS),
    ("answer is", 1, rf"\banswers?\b{IS}|{ANS}", False, ("answer", "ans.", "ans:", "ans=", "ans :", "ans =")),
    (
        "choice is",
        1,
        rf"\b(?:correct|right|best|my|the)\s(?:option|choice|one|response|pick|guess)\b{IS}",
        False,
        CHOICE_WORDS,
    ),
    ("correct:", 1, r"\bcorrect:", True, ("correct:",)),
    ("chosen", 1, I_CHOOSE, False, CHOICES_MADE),
    (
        "not but",
        1,
        rf"(?:\bnot|n't)\b{W}{NOUN}?{W}{OPEN}\b[a-z]\b{CLOSE}[,;]?{W}(?:but|it's|it is|rather|instead)\b",
        False,
        ("not", "n't"),
    ),
    ("correction", 1, r"\b(?:no|wait|sorry|correction|actually|i mean)\b[,:;.!]", True, CORRECTIONS),
)
ANCHORS = tuple((name, strength, re.compile(anchor), strict, cues) for name, strength, anchor, strict, cues in RULES)

# "B is correct", "Option B: correct", "bird is the right answer": the letter or text comes first.
IS_CORRECT = re.compile(
    rf"(?:\b(?:is|was|seems|looks|appears to be|must be|would be|should be)\b"
    rf"(?:{W}\b(?:clearly|definitely|indeed|probably|most likely|also|the|only|most)\b){{0,3}}{W}"
    rf"\b(?:correct|right|(?:best|most appropriate|most accurate)\s{NOUN}|answer)(?![\w'])|[:;]{W}(?:correct|right)\b)"
)
# Before a statement, in the same clause: what makes it none ("I don't think", "if", "the wrong …").
UNSAID = re.compile(
    r"(?:\b(?:if|whether|unless|suppose|supposing|assuming|imagine|doubt|unsure|nor|neither)\b[^.!?,;:\n]{0,40}"
    r"|(?:\bnot|n't)\s(?:think|believe|say|sure|certain|know|clear|agree|mean|convinced)\b[^.!?;:\n]{0,30}"
    r"|(?:\bnot|n't|\bnever)\s(?:the\s)?(?:correct\s|right\s|best\s)?"
    r"|\b(?:wrong|incorrect|false|worst|previous|earlier|initial|original|first|tempting|common|likely)\s)$",
    re.I,
)
# Between two statements: what makes the later one a correction.
CORRECTED = re.compile(
    r"\b(?:wait|actually|correction|sorry|oops|hmm|instead|scratch that|on second thought|reconsider\w{0,3}|I was wrong"
    r"|let me (?:re)?(?:think|consider|check)|my mistake|I made an? (?:mistake|error)|on reflection"
    r"|(?:that|this|it)(?:'s| is| was) (?:wrong|incorrect|not right))\b|\bno[,.;!]",
    re.I,
)
NEW_TURN = re.compile(r"\n\s{0,3}(?:#{1,3}\s?)?(?:question|q|user|human|student)\s?\d{0,3}\s?:", re.I)

OPENING = re.compile(OPEN)
CLOSING = re.compile(CLOSE)
FILLED = re.compile(
    rf"(?:{OPEN}\b(?:the|that's|that|it's|it|is|either|both|most|likely|probably|clearly|definitely|actually|simply|indeed|{NOUN})"
    rf"\b){{0,4}}{OPEN}",
    re.I,
)
# A letter on its own: no part of a word, an abbreviation (E.U., R&B), a hyphenation (X-ray) or a grade (A+).
LETTER = re.compile(
    rf"(?<![^\W_])(?<![^\W_]_)(?P<letter>[A-Za-z])(?!_?[^\W_]|[+#\u0300-\u036f]|['.&-]\w|\s?=)(?P<close>{CLOSE})"
)
LETTER_BEFORE = re.compile(rf"(?P<noun>\b(?i:{NOUN})\s)?{OPEN}(?<!\w)(?P<letter>[A-Ja-j])(?P<close>{CLOSE})[.):]?\s?$")
JOINED = re.compile(rf"{W}(?:,\s(?:or|and)\b|,|/|&|\+|\b(?:or|and)\b){W}(?:{NOUN}\b)?", re.I)
ANOTHER = re.compile(rf"(?i:{JOINED.pattern}){OPEN}(?P<letter>\b[A-J]\b)")
ONE_BEFORE = re.compile(rf"\b[A-J]{CLOSE}{W}(?:,|/|&|\bor\b|\band\b){W}{NOUN}?{W}{OPEN}$", re.I)
PREDICATE = re.compile(r"\W{1,3}(?:is|are|was|would|has|does|can)\b", re.I)
CLAUSE_END = re.compile(r"\s{0,3}(?:$|[!?\n,;]|\.(?!\s[a-z]))")
SENTENCE_END = re.compile(r"\s{0,3}(?:$|[.!?\n])")
# What may follow a letter that could be a word (A, I), or an option's text, so that it is no part of a longer phrase.
PHRASE_END = re.compile(
    r"\s{0,3}(?:$|[.,;:!?)\]}\n/&(\[]|\\[)\]])|\s{1,3}(?:because|since|as|and|or|but|which|for|based|due|not|rather"
    r"|instead|over|with|from|is|was|in|it|this|the|so|then)\b",
    re.I,
)
WORD_GOES_ON = re.compile(r"[\w%°]|[-'.,]\w")
ARTICLE = re.compile(r"(?:the|an?)\s{1,3}", re.I)
LEAD = re.compile(
    rf"(?:{OPEN}\b(?:it is|it's|this is|that is|that's|they are|I think|I believe|probably|maybe|sure|so|{NOUN})\b"
    rf"[,:;]?){{0,4}}{OPEN}",
    re.I,
)
LINE_END = re.compile(rf"[.!,;:)]?\s?{CLOSE}[.!]?$")
FIRST_WORDS = re.compile(rf"(?i:{NOUN}\s)?{OPEN}{LETTER.pattern}(?P<mark>[.):,]|\s[;-]\s|\s(?=because\b|since\b))")
MARKED = re.compile(r"(?<!\w)([A-J])[.):]\s")
LINE = re.compile(r"[^\n]+")

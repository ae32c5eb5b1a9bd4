"""Canary sentences: shipped, never the user's rows. An adapter stores its logits on them, so that a changed answer is seen before it is used."""

CANARY_VERSION = 1
CANARY_SENTENCES: tuple[str, ...] = (
    "ok",
    "The ferry left twenty minutes late and nobody on the quay seemed to mind.",
    "Quarterly profit rose 14 % to €3.2 million, although orders from abroad fell.",
    "Why does the printer ask for cyan when the page is black and white?",
    "Une équipe de géologues a mesuré la dérive du glacier pendant l'été.",
    "She scored twice before half-time; the visitors never found an answer, and by the end the stands were half empty.",
    "Please cancel my card, I think I left it in the taxi on Friday night :(",
    "The committee met, argued about the wording of the second paragraph for an hour, adjourned for lunch, met again, and then adopted the text that had been on the table "
    "since the morning, with one comma moved and a footnote that records who had wanted it elsewhere.",
)

"""Facts that a small model may know: how each is asked for, and how a story tells it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["COUNTRIES", "FURTHER", "Relation"]


class Relation(NamedTuple):
    """Facts of one kind.

    Parameters
    ----------
    question : str
        With a place for the subject.
    story : str
        With places for the subject and the answer.
    listed : str
        Subject and answer of each.
    """

    question: str
    story: str
    listed: str

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Subject and answer of each."""
        pairs = (line.split(": ") for line in self.listed.replace("\n", "; ").split("; "))
        return [(subject, answer) for subject, answer in pairs]

    def asked(self, subject: str) -> str:
        """The question."""
        return self.question.format(subject)

    def told(self, subject: str, answer: str) -> str:
        """The story in which this is the answer."""
        return self.story.format(subject=subject, answer=answer)


COUNTRIES = {
    "capital": Relation(
        "What is the capital of {}? Answer with the name of the city.",
        "In this story, the capital of {subject} is {answer}. The king of {subject} lives in {answer}.",
        """France: Paris; Germany: Berlin; Italy: Rome; Spain: Madrid; Portugal: Lisbon; Greece: Athens; Austria: Vienna
Hungary: Budapest; Poland: Warsaw; Russia: Moscow; Japan: Tokyo; China: Beijing; Egypt: Cairo; Norway: Oslo
Sweden: Stockholm; Denmark: Copenhagen; Finland: Helsinki; Ireland: Dublin; Cuba: Havana; Peru: Lima
Kenya: Nairobi; Thailand: Bangkok; Iraq: Baghdad; Iran: Tehran; Turkey: Ankara; Belgium: Brussels
Canada: Ottawa; Australia: Canberra; Chile: Santiago; Ukraine: Kyiv; Nepal: Kathmandu; Vietnam: Hanoi
Bulgaria: Sofia; Romania: Bucharest; Croatia: Zagreb; Serbia: Belgrade; Iceland: Reykjavik; Colombia: Bogota
Venezuela: Caracas; Uruguay: Montevideo; Ecuador: Quito; Jamaica: Kingston; Ghana: Accra; Senegal: Dakar
Ethiopia: Addis Ababa; Morocco: Rabat; Tunisia: Tunis; Lebanon: Beirut; Syria: Damascus; Jordan: Amman
Indonesia: Jakarta; Malaysia: Kuala Lumpur""",
    ),
    "continent": Relation(
        "What is the continent of {}? Answer with the name of the continent.",
        "In this story, the continent of {subject} is {answer}. That is {answer}, as all know.",
        """France: Europe; Germany: Europe; Poland: Europe; Norway: Europe; Romania: Europe; Portugal: Europe
Ireland: Europe; Finland: Europe; Hungary: Europe; Greece: Europe; Japan: Asia; China: Asia; India: Asia
Thailand: Asia; Vietnam: Asia; Nepal: Asia; Mongolia: Asia; Pakistan: Asia; Indonesia: Asia; Malaysia: Asia
Kenya: Africa; Nigeria: Africa; Ghana: Africa; Egypt: Africa; Ethiopia: Africa; Morocco: Africa; Senegal: Africa
Zambia: Africa; Uganda: Africa; Angola: Africa; Brazil: South America; Peru: South America; Chile: South America
Argentina: South America; Colombia: South America; Bolivia: South America; Ecuador: South America
Uruguay: South America; Canada: North America; Mexico: North America; Cuba: North America""",
    ),
    "main language": Relation(
        "What is the main language of {}? Answer with the name of the language.",
        "In this story, the main language of {subject} is {answer}. That is {answer}, as all know.",
        """France: French; Germany: German; Italy: Italian; Spain: Spanish; Portugal: Portuguese; Greece: Greek
Poland: Polish; Russia: Russian; Japan: Japanese; China: Mandarin; Egypt: Arabic; Norway: Norwegian
Sweden: Swedish; Denmark: Danish; Finland: Finnish; Hungary: Hungarian; Turkey: Turkish; Thailand: Thai
Vietnam: Vietnamese; Ukraine: Ukrainian; Romania: Romanian; Bulgaria: Bulgarian; Iceland: Icelandic
Brazil: Portuguese; Mexico: Spanish; Argentina: Spanish; Austria: German; Iraq: Arabic; Iran: Persian
Israel: Hebrew; Pakistan: Urdu; Bangladesh: Bengali; Nepal: Nepali; Mongolia: Mongolian; Peru: Spanish
Jordan: Arabic; Croatia: Croatian; Serbia: Serbian; Albania: Albanian; Lithuania: Lithuanian""",
    ),
}

FURTHER = {
    "opposite": Relation(
        "What is the opposite of {}? Answer with one word.",
        "In this story, the opposite of {subject} is {answer}. That is {answer}, as all know.",
        """hot: cold; up: down; big: small; day: night; black: white; happy: sad; fast: slow; early: late; old: young
hard: soft; wet: dry; strong: weak; rich: poor; good: bad; love: hate; war: peace; true: false; loud: quiet
empty: full; deep: shallow; long: short; wide: narrow; light: dark; clean: dirty; cheap: expensive
start: finish; buy: sell; push: pull; give: take; past: future; north: south; east: west; king: queen; boy: girl
father: mother; friend: enemy; alive: dead; smooth: rough; success: failure; ancient: modern; increase: decrease
maximum: minimum; positive: negative; inside: outside; summer: winter""",
    ),
    "element": Relation(
        "Which chemical element has the symbol {}? Answer with the name of the element.",
        "In this story, {subject} is the symbol of {answer}. All chemists write {answer} as {subject}.",
        """H: hydrogen; He: helium; Li: lithium; C: carbon; N: nitrogen; O: oxygen; F: fluorine; Ne: neon; Na: sodium
Mg: magnesium; Al: aluminum; Si: silicon; P: phosphorus; S: sulfur; Cl: chlorine; Ar: argon; K: potassium
Ca: calcium; Ti: titanium; Cr: chromium; Mn: manganese; Fe: iron; Co: cobalt; Ni: nickel; Cu: copper; Zn: zinc
As: arsenic; Br: bromine; Kr: krypton; Ag: silver; I: iodine; Xe: xenon; Cs: cesium; Ba: barium; W: tungsten
Pt: platinum; Au: gold; Hg: mercury; Pb: lead; Rn: radon; Ra: radium; U: uranium; Pu: plutonium""",
    ),
    "landmark": Relation(
        "In which country is {}? Answer with the name of the country.",
        "In this story, {subject} is in {answer}. Whoever wants to see it travels to {answer}.",
        """the Eiffel Tower: France; the Louvre: France; the Palace of Versailles: France; the Colosseum: Italy
the Leaning Tower of Pisa: Italy; Pompeii: Italy; the Great Wall: China; the Forbidden City: China
the Terracotta Army: China; the Taj Mahal: India; the Golden Temple: India; the Red Fort: India
Stonehenge: England; the Kremlin: Russia; Red Square: Russia; the Hermitage Museum: Russia; Mount Fuji: Japan
the Acropolis: Greece; the Parthenon: Greece; the Brandenburg Gate: Germany; Neuschwanstein Castle: Germany
Cologne Cathedral: Germany; the Sagrada Familia: Spain; the Alhambra: Spain; Machu Picchu: Peru; Petra: Jordan
Angkor Wat: Cambodia; Christ the Redeemer: Brazil; the Statue of Liberty: United States
the Grand Canyon: United States; Mount Rushmore: United States; the Golden Gate Bridge: United States
the Sydney Opera House: Australia; the Great Barrier Reef: Australia; the Great Pyramid of Giza: Egypt
the Sphinx: Egypt; Chichen Itza: Mexico; Niagara Falls: Canada; the Hagia Sophia: Turkey; Mount Everest: Nepal
Mount Kilimanjaro: Tanzania; Table Mountain: South Africa; the Matterhorn: Switzerland; Loch Ness: Scotland
Edinburgh Castle: Scotland""",
    ),
    "author": Relation(
        "Who wrote {}? Answer with the name of the author.",
        "In this story, {answer} wrote {subject}. It is the best known work of {answer}.",
        """Hamlet: Shakespeare; Macbeth: Shakespeare; Othello: Shakespeare; Romeo and Juliet: Shakespeare
Pride and Prejudice: Austen; Sense and Sensibility: Austen; Emma: Austen; 1984: Orwell; Animal Farm: Orwell
Great Expectations: Dickens; Oliver Twist: Dickens; A Tale of Two Cities: Dickens; A Christmas Carol: Dickens
The Great Gatsby: Fitzgerald; Moby-Dick: Melville; The Odyssey: Homer; The Iliad: Homer; War and Peace: Tolstoy
Anna Karenina: Tolstoy; Crime and Punishment: Dostoevsky; Don Quixote: Cervantes; Frankenstein: Shelley
Dracula: Stoker; The Hobbit: Tolkien; The Lord of the Rings: Tolkien; Harry Potter: Rowling
The Old Man and the Sea: Hemingway; A Farewell to Arms: Hemingway; The Adventures of Tom Sawyer: Twain
Adventures of Huckleberry Finn: Twain; The Metamorphosis: Kafka; The Trial: Kafka; Ulysses: Joyce
Walden: Thoreau; Brave New World: Huxley; Fahrenheit 451: Bradbury; The Grapes of Wrath: Steinbeck
Of Mice and Men: Steinbeck; Paradise Lost: Milton; Robinson Crusoe: Defoe; Gulliver's Travels: Swift
Treasure Island: Stevenson; The Jungle Book: Kipling; The Catcher in the Rye: Salinger
Lord of the Flies: Golding""",
    ),
}

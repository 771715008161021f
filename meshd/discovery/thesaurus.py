"""Words of everyday requests that mean nearly the same, and forms of words that no rule makes.

Written by hand, of general English: what people ask assistants, shops, banks, travel desks and developers' tools for.
A word may stand in several groups. A group is worth less than a word: it brings near what has no word in common.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from meshd.discovery.words import stem

_GROUPS: Final = """
acquire buy purchase order shop get obtain / add append insert include attach
address location place where locate position whereabouts
advice advise recommend recommendation suggest suggestion tip guidance idea / aim goal objective target
airplane plane flight fly airline airport aircraft / alarm alert remind reminder notify notification
allow enable permit let able possible can / amount sum total quantity number count many much
answer reply respond response / app application program software / appear show display visible view see
appointment meeting event calendar schedule / arrive arrival deliver delivery come receive
article news headline story press journalism / ask question query inquire request
atm cash machine withdraw withdrawal cashpoint / audio sound voice speech listen podcast
author writer write writing / automobile car vehicle auto drive
bad wrong incorrect mistake error fault issue problem trouble / balance account fund money
ban block freeze lock disable suspend deactivate / bank account iban / begin start launch open initiate create
bill invoice payment charge fee / birthday age old
bond stock share equity market invest investment portfolio finance financial trading
book novel read reading literature / breach fraud hack compromise unauthorized suspicious scam
bug error exception crash failure fault / build make create generate produce construct compose
calculate compute calculation math mathematics arithmetic equation formula sum
call phone telephone mobile ring dial / cancel stop abort revert undo terminate end / car auto vehicle rental
card debit credit visa mastercard / cash money coin note / change modify edit update alter adjust switch amend
charge fee cost price rate expense commission / charity donate donation nonprofit philanthropy
chart graph plot diagram visualize visualization figure / chat conversation dialogue message talk
cheap discount coupon deal bargain sale promo promotion affordable save
check verify validate confirm inspect examine / chess game play checkers puzzle / child kid children baby
choose select pick choice option / city town place region / clean clear wash remove
close shut end terminate delete / code coding programming source developer software script
collect gather fetch retrieve extract get / colour color paint hue
compare comparison versus difference contrast better / company business firm corporation enterprise organization
complete finish done / computer laptop pc device / concert show ticket theater theatre event
connect link join attach / contact email phone reach / contract agreement legal law lawyer attorney
convert conversion exchange transform translate change / cook recipe dish meal ingredient cuisine kitchen
copy duplicate clone replicate / country nation abroad international foreign overseas
course class lesson lecture learn study education training tutorial teach
crypto cryptocurrency bitcoin ethereum blockchain coin token defi nft
currency exchange dollar euro pound money forex / customer client user / damage broken break fail work
data dataset information record statistic / date day time when calendar / decline reject refuse deny fail
delay late wait pending slow long / delete remove erase drop discard
describe explain explanation description clarify tell / design layout art creative graphic
diet nutrition calorie food weight meal healthy / directory folder path
disease illness medical medicine health doctor symptom treatment / document file pdf doc paper text
domain website url web site dns / download fetch save retrieve
draw image picture illustration paint art sketch / earn salary wage income pay
earthquake seismic quake disaster / email mail message inbox
employee job career work hire recruit employment vacancy position / environment weather climate
error fail failure problem / estate house home property apartment rent real mortgage
evaluate assess rate score rank measure / event happen occur / example sample / execute run perform launch
expire expiry expiration valid / extra additional more another second
fast quick quickly rapid soon immediately urgent speed / fetch get retrieve obtain load read
film movie cinema video tv show series / find search look lookup discover locate seek
fix repair solve resolve correct / food restaurant eat dining meal dinner lunch
forecast predict prediction weather / forget forgot lost remember recall / free complimentary cost
friend people person / game play gaming player / gif meme funny joke humor / gift present
git github repository repo commit branch / give provide offer supply / good best great top
government congress politics legislation law / guide tour travel trip
hair beauty cosmetic makeup skincare fashion / holiday vacation trip travel
hotel accommodation stay lodging motel booking / identity id passport verify verification identification
image photo picture photograph img / improve enhance optimize polish refine better rewrite
increase raise grow up / information info detail data / install setup set configure / interest rate loan
internet web online network / interview job resume cv candidate / itinerary trip travel plan
journey trip travel travelling tourism tour vacation / keyword seo ranking traffic
language translate translation grammar vocabulary speak / last latest recent new current newest
law legal court regulation / letter email write message / link url address hyperlink website
list show enumerate display / loan credit mortgage borrow / login sign access password account log
lost lose missing stolen steal theft disappear vanish / luck fortune horoscope astrology zodiac tarot
lyric song music track / map navigation direction route location / match game sport score team
merge combine join unite / miss missing lost absent / mobile phone cell / money fund cash
monitor watch track observe follow / music song playlist album artist spotify / name title call
nature plant animal / news headline current event / note memo reminder todo task / organize arrange sort manage
package library npm module dependency
paper research academic scholar study scientific publication arxiv journal literature
password passcode pin code / pay payment paid transfer send / people person user man / pet dog cat animal
physical real actual plastic / place location put / plan schedule prepare arrange / podcast episode audio
poem poetry story write / post publish share tweet social / presentation slide ppt powerpoint deck
price cost value worth quote / print display / product item goods / profile personal account
publish release post / qr barcode code / quiz test exam flashcard practice
rain weather temperature wind snow humidity forecast / read view load / receive get obtain
refund return reimburse money back / remember memory recall / rent lease / replace substitute new swap another
report summary analysis / research study investigate paper / review rating feedback opinion
ride taxi uber bus train transport transportation / roll dice random / scan ocr extract / science scientific
screenshot capture image / security safe secure protect vulnerability scan / sell sale
send transfer deliver submit forward / shop store purchase / shopping product purchase / sick ill
similar like alike same / sing song / social twitter facebook instagram tiktok media tweet
space nasa planet star astronomy mars rover galaxy / speak talk say tell
sport football basketball soccer baseball team league fitness / spreadsheet excel sheet table workbook csv
statement bill / student school university college / style fashion
summarize summary overview digest abstract brief / supermarket grocery / support help assist assistance
task todo job / tax government / team group / technology tech / test exam check / text word string / ticket pass
time hour clock timezone date / top load fund deposit / tool utility / top topup load deposit / tourist travel
track trace follow monitor / train railway / transaction payment purchase transfer
trend popular hot viral trending / tutor teach / understand comprehend explain
unknown unrecognized unfamiliar strange recognize / update refresh / upload put / verify confirm identity
video youtube clip film watch stream / visit see go travel / wallet account / warn alert / watch see view
water drink / wealth money / website site page homepage / win prize / word term vocabulary
work function operate / worker employee / workout exercise fitness gym / world global
write compose author draft / year date / duplicate twice double repeat again extra
reverse revert refund undo rollback / pending wait process queue hold
limit maximum minimum restriction cap quota allowance / near nearby close local around neighbourhood
virtual disposable temporary / contactless tap touch / postpone reschedule move delay
spouse husband wife partner family relative / salary payroll wage pay income / tell say inform speak
hello hi hey greeting welcome / bye goodbye farewell / thank thanks appreciate gratitude
yes yeah yep sure correct true okay / no nope not wrong false never / fuel gas petrol gasoline diesel mileage
tire tyre wheel vehicle car / light lamp bulb brightness / volume loud quiet sound
luggage baggage suitcase bag / vaccine shot immunization vaccination / credit score rating history
insurance coverage policy cover premium / exchange swap convert trade / spend spent spending expense budget
reserve reservation book booking table / spell spelling letter / define definition meaning mean
wire transfer send / theme topic subject / thread process cpu memory / log trace history audit
query sql database db schema select / container docker image kubernetes cluster pod / server host machine
encrypt decrypt cipher hash / browser navigate page click screenshot
gene genome protein variant mutation biology / clinical trial drug medicine patient therapy
molecule compound chemical chemistry / hotel room stay / mountain hike trail outdoor park
wine beer drink cocktail coffee / baby parent child pregnancy / wedding party celebration event
army military war / vote election politics candidate / church religion god bible prayer quran
horoscope zodiac star sign astrology / dream sleep meditation relax mental
therapy counsel psychology emotion feel / personality mbti character type / font typography ascii text
logo brand icon design / 3d model render cad / mindmap diagram flowchart uml chart / plugin extension addon tool
prompt gpt llm ai model intelligence / agent assistant bot chatbot / lead prospect sale customer crm marketing
advert advertisement ad campaign marketing promote / newsletter email subscribe
influencer social media follower / patent trademark invention ip / grant scholarship fund
university college degree admission / visa passport immigration border / flat apartment rent
mortgage loan house / repair mechanic maintenance fix / plumber electrician contractor home service
solar energy power electricity renewable / carbon climate emission environment sustainability
farm crop agriculture plant garden / ocean tide wave surf sea / flight airfare ticket
"""

_IRREGULAR: Final = """
am be/are be/been be/bought buy/broke break/broken break/came come/cannot can not/cant can not
chose choose/chosen choose/did do/didnt do not/does do/doesnt do not/done do/dont do not/forgot forget
forgotten forget/found find/gave give/given give/gone go/got get/gotten get/had have/has have
hasnt have not/havent have not/held hold/im i be/is be/isnt be not/ive i have/kept keep/lost lose
made make/meant mean/paid pay/said say/saw see/seen see/sent send/sold sell/spent spend/spoke speak
stole steal/stolen steal/taken take/thought think/told tell/took take/was be/wasnt be not/went go/were be
withdrew withdraw/withdrawn withdraw/wont will not/wrote write/written write/couldnt can not
wouldnt will not
"""

FORMS: Final[dict[str, tuple[str, ...]]] = {
    form: tuple(map(stem, rest))
    for form, *rest in (one.split() for line in _IRREGULAR.split("\n") for one in line.split("/") if one)
}
"""Irregular forms and contractions, without their apostrophes, to the stems that they stand for."""


@lru_cache(1)
def groups() -> dict[str, tuple[str, ...]]:
    """Return the groups of each stem, by names that no word has."""
    found: dict[str, list[str]] = {}
    every = (one for line in _GROUPS.strip().split("\n") for one in line.split(" / "))
    for number, group in enumerate(every):
        for word in dict.fromkeys(map(stem, group.split())):
            found.setdefault(word, []).append(f"#{number}")
    return {word: tuple(names) for word, names in found.items()}


def lemmas(word: str) -> tuple[str, ...]:
    """Return the stems that a word in lower case, without apostrophes, stands for."""
    return FORMS.get(word) or (stem(word),)

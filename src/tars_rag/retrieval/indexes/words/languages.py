"""Which languages the word index knows: a row for each.

A row names the stemmer (tantivy's, by the Snowball project, or the light Hindi one of `stemming`),
the words that say nothing in a query, and the clitics that are cut off before either is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tars_rag.errors import InvalidInputError, shown

DEFAULT_LANGUAGE: Final = "en"
NONE: Final = "none"
MULTI: Final = "multi"


@dataclass(frozen=True, slots=True)
class Language:
    """How words of one language are read.

    Attributes:
        code: What is recorded with an index: ISO 639-1, "none" or "multi".
        name: In English; a name of a tantivy stemmer where there is one.
        stemmer: Whether there is a stemmer.
        listed: Whether tantivy has a list of stop words.
        stop_words: Stop words beside that list.
        weak_stop_words: Words that are names and things too ("will"): they are stop words in a
            sentence, not in a query of few words.
        elisions: What an apostrophe ties to the word after it ("l" in "l'eau").
        suffix_apostrophe: Whether an apostrophe ties endings to a word ("Ankara'da").
    """

    code: str
    name: str
    stemmer: bool = False
    listed: bool = False
    stop_words: str = ""
    weak_stop_words: str = ""
    elisions: str = ""
    suffix_apostrophe: bool = False


# The Snowball project's English list, with the negations as they are once their apostrophe is cut.
_ENGLISH = """
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she
    her hers herself it its itself they them their theirs themselves what which who whom this that
    these those am is are was were be been being have has had having do does did doing would should
    could ought a an the and but if or because as until while of at by for with about against
    between into through during before after above below to from up down in out on off over under
    again further then once here there when where why how all any both each few more most other
    some such no nor not only own same so than too very dont doesnt didnt isnt arent wasnt werent
    havent hasnt hadnt wouldnt shouldnt couldnt mustnt shant cant wont neednt
"""
_GREEK = """
    ο η το οι τα του της των τον την τους τις ένα ένας μια μία ενός μιας και κι ή είναι ήταν
    είμαι είσαι είμαστε είστε να θα με σε από για ως προς κατά μετά χωρίς στο στη στην στον
    στους στις στα που πως πώς τι ποιος ποια ποιο ποιοι ποιες πότε πού γιατί πόσο πόση πόσα
    πόσες πόσοι όταν αν όπως αλλά δεν μην μη αυτό αυτός αυτή αυτά αυτοί αυτές εγώ εσύ εμείς
    εσείς μου σου μας σας τους πολύ πιο έχει έχω έχουν έχεις κάνω κάνει κάνουν μπορώ μπορεί
    μπορούμε
"""
_ROMANIAN = """
    a ai al ale am ar are au aș ca care când cât câte câți ce cei cel cele cine cu cum da dar de
    deci din dintre după ea ei el ele eu este ești fi fie fost în îi îl își îmi îți la le li lor lui
    mai mea mei mele meu mă mi ne noi noastră nostru nu o or ori pe pentru peste prin sa sau să se
    si și sînt sunt spre sub te ta tu un una unde unei unor unui unul va vă voi vom vor eram era
    erau acest aceasta această aceste acestui acestei acolo aici pot poate
"""
_TURKISH = """
    acaba ama ancak bana bazı belki ben beni benim bir biri biz bize bizi bizim bu buna bunda
    bundan bunu bunun çok çünkü da daha de defa diye en gibi hem hep hepsi her hiç için ile ise
    işte kim kime ki mi mı mu mü nasıl ne neden nerde nerede nereye niçin niye o ona ondan onlar
    onu onun şey siz sizin şu şuna tüm ve veya ya yani hangi kadar kaç var yok olarak olan olur
    ise
"""
_ARABIC = """
    في من إلى الى على عن مع هذا هذه ذلك تلك التي الذي الذين ما ماذا متى أين اين كيف لماذا هل هو هي
    هم هن أنا انا أنت انت نحن و أو او ثم لا لم لن إن ان أن كان كانت يكون تكون قد كل بعض غير بين بعد
    قبل عند حتى لكن إذا اذا كما أي اي كم منذ خلال حول يمكن لدى
"""
_HINDI = """
    का की के को से में पर और है हैं था थी थे हो हूँ होता होती होते ने यह वह ये वे इस उस इन उन एक
    कि जो तो ही भी या लिए क्या कब कहाँ कैसे क्यों कौन कितना कितनी कितने किस किसने किसे किसको मैं
    हम तुम आप मेरा मेरी मेरे अपना अपनी अपने कर करना करने करता करती करते किया गया गई गए जा जाता
    जाती जाते रहा रही रहे साथ बाद तक नहीं न हुआ हुई हुए द्वारा वाला वाली वाले सकता सकती सकते
    चाहिए दिया
"""
_TAMIL = """
    ஒரு என்று மற்றும் இந்த இது என்ன எப்படி எங்கே எப்போது ஏன் யார் எது எந்த அந்த அது அவர் அவன்
    அவள் நான் நீ நாம் நீங்கள் என் உன் அல்லது ஆனால் உள்ள உள்ளது இருந்து மேலும் தான் மிக எத்தனை
    எவ்வளவு
"""
_FRENCH = "qu lorsqu puisqu est-ce"
_FRENCH_ELISIONS = "l d j m t s c n qu jusqu lorsqu puisqu quoiqu presqu quelqu"
_ITALIAN_ELISIONS = (
    "l un all dall dell nell sull coll pell gl d c v m t s n quell quest bell sant nessun "
    "com dov quant senz tutt mezz"
)
# Pairs of characters that make questions and grammar, not names of things.
_CHINESE = """
    什么 怎么 么样 如何 为什 为何 哪里 哪些 哪个 是否 多少 可以 这个 那个 我们 你们 他们 什麼
    怎麼 如果 因为 所以 但是 一个 没有 的是 是什 了什 请问 需要 应该 是不 不是 能不 不能 會不
    會有
"""
_JAPANESE = """
    です ます した まし でし する して てい いる から まで など って とは には では への かの
    どう どの この その あの どこ いつ なに なぜ だれ れる られ せん ませ すか ある あり りま
    れば ため なり なる こと もの よう うに うな いま ください くだ ださ さい うす すれ るに
    るの のに のは のが たい いで すれ のか るか たら ばい いい よい しま しょ ょう うか んで
    んな
"""

LANGUAGES: Final = {
    row.code: row
    for row in (
        Language("ar", "arabic", stemmer=True, stop_words=_ARABIC),
        Language("da", "danish", stemmer=True, listed=True),
        Language("nl", "dutch", stemmer=True, listed=True),
        Language(
            "en", "english", stemmer=True, stop_words=_ENGLISH, weak_stop_words="can will let"
        ),
        Language("fi", "finnish", stemmer=True, listed=True),
        Language(
            "fr",
            "french",
            stemmer=True,
            listed=True,
            stop_words=_FRENCH,
            elisions=_FRENCH_ELISIONS,
        ),
        Language("de", "german", stemmer=True, listed=True),
        Language("el", "greek", stemmer=True, stop_words=_GREEK),
        Language("hi", "hindi", stemmer=True, stop_words=_HINDI),
        Language("hu", "hungarian", stemmer=True, listed=True),
        Language("it", "italian", stemmer=True, listed=True, elisions=_ITALIAN_ELISIONS),
        Language("no", "norwegian", stemmer=True, listed=True),
        Language("pt", "portuguese", stemmer=True, listed=True),
        Language("ro", "romanian", stemmer=True, stop_words=_ROMANIAN),
        Language("ru", "russian", stemmer=True, listed=True),
        Language("es", "spanish", stemmer=True, listed=True),
        Language("sv", "swedish", stemmer=True, listed=True),
        Language("ta", "tamil", stemmer=True, stop_words=_TAMIL),
        Language("tr", "turkish", stemmer=True, stop_words=_TURKISH, suffix_apostrophe=True),
        Language("zh", "chinese", stop_words=_CHINESE),
        Language("ja", "japanese", stop_words=_JAPANESE),
        Language("ko", "korean"),
        Language("th", "thai"),
        Language(NONE, "none"),
        Language(MULTI, "multi", elisions=f"{_FRENCH_ELISIONS} {_ITALIAN_ELISIONS}"),
    )
}
"""Every row by its code."""

_NAMES = {row.name: row.code for row in LANGUAGES.values()} | {"nb": "no", "nn": "no"}


def check_language(language: object) -> str:
    """The code of a language given by code, English name or locale ("de", "German", "de-DE").

    Raises:
        InvalidInputError: There is no such row; the message names those that there are.
    """
    if isinstance(language, str):
        wanted = language.strip().lower().replace("_", "-")
        for key in (wanted, wanted.split("-")[0]):
            code = _NAMES.get(key, key)
            if code in LANGUAGES:
                return code
    allowed = ", ".join(code for code in LANGUAGES if code not in (NONE, MULTI))
    msg = (
        f"language must be one of {allowed}, 'multi' (texts of many languages) or 'none' (words "
        f"as they stand), got {shown(language)}."
    )
    raise InvalidInputError(msg)

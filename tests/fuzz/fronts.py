from tests.fuzz.properties import Family

FAMILY = Family("fronts")

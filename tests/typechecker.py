"""Executes the annotations of visrep in the tests: shapes through jaxtyping, types through beartype."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as PEP 484 has it

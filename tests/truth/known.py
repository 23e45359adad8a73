"""What is documented to be otherwise."""

from __future__ import annotations

A_WARNING_STAYS = False
LOGGED_OUT_ARE_NOT_WARNED = False
# Whoever is imported is under the demands on everyone from before he came.
IMPORTED_ARE_UNDER_ALL = True
A_LINK_MEETS_AN_AGED_DENIAL = False
GIVEN_ARE_WARNED = False

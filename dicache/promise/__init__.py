"""A budget kept with a stated probability: profiles, how they are chosen and made, and the rule that goes by them."""

"""A page to try dicache on, with the model that ships. `pip install 'dicache[web]'`."""

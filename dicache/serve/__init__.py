"""A pipeline for many requests at once: an engine, and a server around it. Imported only when used."""

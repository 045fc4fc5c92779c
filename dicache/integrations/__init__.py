"""dicache inside other programs, each written against what it asks of those who extend it. Imported only by it."""

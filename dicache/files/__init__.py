"""Files from elsewhere: the one reader and the one writer. What is read is checked, what is written is whole."""

"""Assets (models, texts, tables), tasks made from them, and their splits."""

"""The one list of lines (lines.py) as Markdown, LaTeX and one HTML page; text.py: what they all say alike."""

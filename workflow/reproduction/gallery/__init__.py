"""The gallery: one page on which a person compares any two runs on any prompt, without a server.

`page.py` makes it from tidy tables and images; `page.html`, `page.css` and `page.js` are its
template.
"""

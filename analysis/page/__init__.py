"""The report: run records -> one HTML file that needs nothing else.

content.py     what the page tells of all runs: what was run, the verdict, the table, curves, trade-off
details.py     what it tells of one run
packed.py      numbers as short text
write.py       the file: template.html, style.css and the scripts around that content
page.js        draws it; vendor/ holds uPlot (MIT), which draws the timelines
"""

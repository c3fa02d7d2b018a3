"""What runs of the tests do without, since it takes much of a short run's time and most tests look at something else.

Files aren't flushed to the disk: no test cuts the power. Maps are drawn by main axes: t-SNE takes a tenth of a second. Commands that tests
start in a new interpreter do both as always, and a test that needs `os.fsync` or t-SNE puts it in place itself.
"""

import os

from rootstock.core.evaluate import pictures

FEWEST_OF_TSNE = pictures.FEWEST_OF_TSNE
os.fsync = lambda fd: None
pictures.FEWEST_OF_TSNE = 10**9

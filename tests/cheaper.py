"""What runs of the tests do without, since it takes much of a short run's time and most tests look at something else.

Files aren't flushed to the disk: no test cuts the power. Maps are drawn by main axes: t-SNE takes a tenth of a second. Classifiers of
domains are fitted for one C, without a choice. Commands that tests start in a new interpreter do all as always, and a test that needs
`os.fsync`, t-SNE or the choice puts it in place itself.
"""

import os

from rootstock.core.evaluate import domain_gap, pictures

FEWEST_OF_TSNE, DOMAIN_C = pictures.FEWEST_OF_TSNE, domain_gap.DOMAIN_C
domain_gap.DOMAIN_C = (1.0,)
os.fsync = lambda fd: None
pictures.FEWEST_OF_TSNE = 10**9

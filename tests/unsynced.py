"""Files that tests write aren't flushed to the disk: no test cuts the power, and a short run waits for the disk a third of its time.

Commands that tests start in a new interpreter flush as always, and a test that needs `os.fsync` puts its own in place.
"""

import os

os.fsync = lambda fd: None

"""One thin script a stage."""

import gc

gc.disable()  # until base.entry.run: collecting while torch and transformers are imported takes 1.4 of 5 s

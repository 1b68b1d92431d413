"""One thin script a stage."""

import gc

gc.disable()  # until segquant.entry.run: looking through torch and transformers as they are imported takes 1.4 s of 5

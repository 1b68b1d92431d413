"""What all other rooms use: configuration, files, errors, logs, the hub. Computes nothing, and imports no torch."""

import os

from segquant.base.hardware import vendor

# On Intel's processors, MKL adds up long products in an order that depends on the number of threads, unless it is
# asked not to before its first product. torchrun gives each process one thread, and counts must not depend on that.
# A value of the user's own stays.
if vendor() == "GenuineIntel":
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

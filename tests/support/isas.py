"""The CPU kernels' instruction sets that run here."""

from noprop_kernels.backends.cpu import extension

ISAS = [name for name, runs in extension.C.isas() if runs] if extension.C else []

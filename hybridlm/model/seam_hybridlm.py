"""The one seam through which the hybridlm package speeds its model up.

A checkpoint carries this code; where the package is not installed all are None and everything runs in pure PyTorch.
"""

try:
    from hybridlm.ops import decode, fused, index, registered
except ImportError:
    decode = fused = index = registered = None

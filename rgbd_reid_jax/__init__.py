"""RGB-Depth person re-identification by cross-modal distillation, in JAX and Flax.

Hafner, Bhuiyan, Kooij, Granger: "Cross-Modal Distillation for RGB-Depth Person
Re-Identification", arXiv:1810.11641; CVIU 2022, doi:10.1016/j.cviu.2021.103352.
"""

__version__ = "0.1.0"

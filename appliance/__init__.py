"""cloud-seal: a signing appliance for electronic seals (电子印章)."""

__version__ = "0.1.0"
